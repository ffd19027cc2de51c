"""Run an export: score the agent and its students, export and measure all, write the report.

The directory is that of a distillation whose students are trained already.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from agents import TrainedAgent, load_agent
from agents.architectures import TEACHER
from agents.distillation.dataset import Dataset
from agents.distillation.deploy.deployment import deploy_students
from agents.distillation.deploy.export import ONLY_SINGLE_NETWORKS
from agents.distillation.pipeline import STATES, Pipeline
from agents.distillation.records import (
    RESULT_FILE,
    STUDENTS,
    TEACHER_FILE,
    SavedScore,
    StudentRecord,
    export_name,
    read_record,
    student_name,
    write_record,
)
from agents.distillation.settings import DistillConfig, StudentSpec
from agents.distillation.students import Student, digest_of, network_sizes
from agents.foreign.formats import has_layers, is_foreign
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
    if is_foreign(config.run_dir) and not has_layers(config.run_dir):
        raise UsageError(f"{config.run_dir} cannot be exported: {ONLY_SINGLE_NETWORKS}")
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
    opened = open_output(whole, games, machine, before, same_teachers=False)
    with opened, reporting(whole):
        discard_earlier(pipeline)
        _, dataset = prepare(pipeline, StudentSpec("", {"kl": 1.0}, config.seed))
        exported = {}
        for directory in students:
            agent = load_agent(directory)
            record = measure_student(pipeline, dataset, agent, directory)
            exported[export_name(record["student"], ONLINE)] = agent
        deploy_students(pipeline, exported, dataset)


def discard_earlier(pipeline: Pipeline) -> None:
    """Remove what was measured of other weights of the agent, so that it is measured again.

    The agent's score, the first that is written, is the last that is removed: so this is repeated
    after a kill.
    """
    out, path = pipeline.config.out, pipeline.score_path(TEACHER)
    score = read_record(path, SavedScore)
    if score is None or score.get("weights") == pipeline.weights:
        return
    say("the weights are not those that were exported before: measuring all again")
    (out / TEACHER_FILE).unlink(missing_ok=True)
    for folder in (STUDENTS, STATES):
        if (out / folder).exists():
            shutil.rmtree(out / folder)
    path.unlink()


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
    weights = digest_of(agent.network)
    score = pipeline.saved_score(
        pipeline.score_path(full), directory.name, agent.choose, weights=weights
    )
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
        "evaluation": score,
        "weights": weights,
    }
    write_record(pipeline.config.out / STUDENTS / full / RESULT_FILE, record)
    return record
