"""Run an export: score the agent and its students, export and measure all, write the report.

The directory is that of a distillation whose students are trained already.
"""

from collections.abc import Callable
from pathlib import Path

from agents import TrainedAgent, load_agent
from agents.distillation.dataset import Dataset
from agents.distillation.deploy.deployment import deploy_students
from agents.distillation.deploy.export import ONLY_SINGLE_NETWORKS, exportable
from agents.distillation.pipeline import Pipeline
from agents.distillation.records import (
    RESULT_FILE,
    STUDENTS,
    StudentRecord,
    export_name,
    student_name,
    write_record,
)
from agents.distillation.settings import DistillConfig, StudentSpec
from agents.distillation.students import Student, network_sizes
from agents.foreign.formats import is_foreign
from agents.networks import QNetwork
from agents.trained import STUDENT, WEIGHTS
from ebu.commands.distilling.build import build_pipelines, check_teachers, open_output
from ebu.commands.distilling.run import prepare, reporting
from ebu.commands.export import ExportConfig
from ebu.errors import UsageError
from ebu.run.directory import CONFIG, read_config, read_earlier_config
from ebu.run.machine import choose_machine, prepare_torch
from ebu.run.progress import say

ONLINE = "kl-online"
"""The method of students that were distilled while their teacher trained: a procedure of kl."""


def run_export(config: ExportConfig, *, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Export as configured, or find that done.

    Raises `UsageError` for what cannot be exported, before anything is played, `EbuError` for
    damaged files and a full disk, `Stopped` once `should_stop` says so.
    """
    students = online_students(config.run_dir)
    best = bool(students) and (config.run_dir / WEIGHTS["best"]).is_dir()
    before = read_earlier_config(config.out)
    machine = choose_machine("cpu", config.threads, "float32", before)
    prepare_torch(machine.device, machine.torch_threads)
    whole = DistillConfig(
        run_dirs=(config.run_dir,),
        out=config.out,
        trust_env=config.trust_env,
        students=(),
        baselines=(),
        seeds=1,
        seed=config.seed,
        weights=config.weights or ("best" if best else "final"),
        states=config.states,
        rounds=1,
        num_envs=config.num_envs,
        games=config.games,
        policy=config.policy,
        **machine.settings(),
    )
    games = check_teachers(whole, [], machine.device)
    ((pipeline,),) = [build_pipelines(whole, games, should_stop).values()]
    for line in pipeline.teacher.warnings:
        say(f"warning: {line}")
    if not exportable(pipeline.teacher.network):
        raise UsageError(f"{config.run_dir} cannot be exported: {ONLY_SINGLE_NETWORKS}")
    with open_output(whole, games, machine, before), reporting(whole):
        _, dataset = prepare(pipeline, StudentSpec("", {"kl": 1.0}, config.seed))
        exported = {}
        for directory in students:
            agent = load_agent(directory)
            record = measure_student(pipeline, dataset, agent, directory)
            exported[export_name(record["student"], ONLINE)] = agent
        deploy_students(pipeline, exported, dataset)


def online_students(run_dir: Path) -> list[Path]:
    """The run directories of the students that a run of train.py has distilled."""
    if is_foreign(run_dir) or read_config(run_dir)["settings"].get("agent") == STUDENT:
        return []
    return sorted(path.parent for path in (run_dir / STUDENTS).glob(f"*/{CONFIG}"))


def measure_student(
    pipeline: Pipeline, dataset: Dataset, agent: TrainedAgent, directory: Path
) -> StudentRecord:
    """The record of a student that was distilled online, written for the report."""
    settings = agent.config["settings"]
    name, seed = settings.get("student", settings["network"]), settings["seed"]
    full = student_name(name, ONLINE, seed)
    assert isinstance(agent.network, QNetwork)
    student = Student(settings["network"], agent.network, agent.outputs)
    score = pipeline.config.out / "scores" / f"{full}.json"
    record: StudentRecord = {
        "student": name,
        "network": settings["network"],
        "method": ONLINE,
        "seed": seed,
        "outputs": agent.outputs,
        **network_sizes(agent.network, agent.config["environment"]),
        "updates": 0,
        "states": 0,
        "seconds": 0.0,
        "held_out": pipeline.supervise(dataset, {"kl": 1.0}).measure(student),
        "evaluation": pipeline.saved_score(score, directory.name, agent.choose),
    }
    write_record(pipeline.config.out / STUDENTS / full / RESULT_FILE, record)
    return record
