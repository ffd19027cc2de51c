"""Names of networks: the widths of their layers, and the ranks of factorised ones.

nature                                the network of Mnih et al. 2015 (Nature)
dueling                               the same convolutions, two streams (Wang et al. 2016)
impala, impala2, impala4, …           residual blocks, 1, 2, 4 times as wide (Espeholt et al. 2018)
net1, net2, net3                      the three sizes of Rusu et al. 2015 below it
grid                                  one convolution over the cells of a small grid
16-32-32/256                          any other widths: three convolutions, dense layer
nature@tucker=16,32,32,32,svd=64      the second and third convolution in Tucker-2 form, ranks
                                      in, out, in, out; the first dense layer of rank 64

A student may also be its teacher's own network: teacher, or teacher@half, teacher@energy=0.9,
teacher@vbmf, teacher@tucker=…, whose ranks follow from the teacher's weights.
"""

import importlib.util
import math
import re
from dataclasses import dataclass, replace

from ebu.errors import UsageError
from ebu.run.hints import install_command
from ebu.run.settings import did_you_mean, read_float

KERNELS = (8, 4, 3)
STRIDES = (4, 2, 1)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Q-network.

    | field | meaning |
    | --- | --- |
    | filters | of the three convolutions, or of the three stages of an Impala network |
    | hidden | units of the dense layer, in each stream of a dueling network |
    | dueling | a stream for the state's value and one for the advantages |
    | tucker | ranks of the second convolution (in, out), then of the third; None: both whole |
    | svd | rank of the first dense layer; None: whole |
    | impala | stages of residual blocks in place of the convolutions |
    """

    filters: tuple[int, int, int]
    hidden: int
    dueling: bool = False
    tucker: tuple[int, int, int, int] | None = None
    svd: int | None = None
    impala: bool = False


GRID = "grid"
"""The network of MinAtar (Young, Tian 2019) for small grids."""
ARCHITECTURES = {
    "nature": Architecture((32, 64, 64), 512),
    "dueling": Architecture((32, 64, 64), 512, dueling=True),
    "net1": Architecture((16, 32, 32), 256),
    "net2": Architecture((16, 16, 16), 128),
    "net3": Architecture((16, 16, 16), 64),
    GRID: Architecture((16, 16, 16), 128),
}
"""Networks that have a name of their own."""
LADDER = ("net1", "net2", "net3", "12-12-12/48", "8-8-8/32", "4-4-4/16", "2-2-2/8")
"""What `distill.py --smallest` looks among if no students are named: those below the teacher."""
TEACHER = "teacher"
"""As a student's name: the teacher's own architecture, or after an `@` its factorised network."""
Ranks = tuple[tuple[int, int, int, int] | None, int | None]
"""Of the convolutions (None: whole), and of the dense layer (None: whole)."""
RankRule = str | float
"""How a teacher's ranks are chosen: half, vbmf, or the share of the energy to keep."""

_COUNT = r"([1-9][0-9]{0,3})"
_WIDTHS = re.compile(rf"{_COUNT}-{_COUNT}-{_COUNT}/{_COUNT}")
_IMPALA = re.compile(rf"impala{_COUNT}?")
_RANKS = re.compile(rf"tucker={_COUNT},{_COUNT},{_COUNT},{_COUNT}(?:,svd={_COUNT})?|svd={_COUNT}")


def architecture(name: str) -> Architecture:
    """The sizes of the network of this name.

    Raises `UsageError`, one line, for an unknown name.
    """
    base, factorised, ranks = name.partition("@")
    sizes = whole_architecture(base)
    if sizes is None:
        raise UsageError(
            unknown("network", name, [*ARCHITECTURES], "impala4, or widths such as 16-32-32/256")
        )
    if factorised:
        tucker, svd = parse_ranks(ranks)
        if tucker is not None and sizes.impala:
            raise UsageError(f"network '{name}': only its dense layer can be factored, by svd=")
        sizes = replace(sizes, tucker=tucker, svd=svd)
        _check_ranks(name, sizes)
    return sizes


def whole_architecture(name: str) -> Architecture | None:
    """The sizes of a network that is not factorised; None for an unknown name."""
    impala = _IMPALA.fullmatch(name)
    if impala is not None:
        width = int(impala.group(1) or 1)
        return Architecture((16 * width, 32 * width, 32 * width), 512, impala=True)
    widths = _WIDTHS.fullmatch(name)
    if widths is None:
        return ARCHITECTURES.get(name)
    conv1, conv2, conv3, hidden = map(int, widths.groups())
    return Architecture((conv1, conv2, conv3), hidden)


def parse_ranks(text: str) -> Ranks:
    """The ranks of `tucker=16,32,32,32,svd=64`, of which one half may be absent (None).

    Raises `UsageError` where the text names no ranks.
    """
    found = _RANKS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"'{text}' names no ranks: write tucker=16,32,32,32 (in, out of the second "
            "convolution, in, out of the third), svd=64, or both with a comma between"
        )
    one, two, three, four, svd_after, svd_alone = found.groups()
    if one is None:
        return None, int(svd_alone)
    svd = None if svd_after is None else int(svd_after)
    return (int(one), int(two), int(three), int(four)), svd


def ranks_name(tucker: tuple[int, int, int, int] | None, svd: int | None) -> str:
    """What `parse_ranks` reads these ranks from; at least one of the two is given."""
    parts = [] if tucker is None else [f"tucker={','.join(map(str, tucker))}"]
    return ",".join(parts if svd is None else [*parts, f"svd={svd}"])


def check_student(name: str) -> None:
    """Raise `UsageError`, one line, for a name that stands for no student of any teacher."""
    base, factorised, ranks = name.partition("@")
    if base != TEACHER and whole_architecture(base) is None:
        raise UsageError(
            unknown(
                "student",
                name,
                [*ARCHITECTURES, TEACHER],
                "widths such as 16-32-32/256, or the teacher factorised: teacher@half, "
                "teacher@energy=0.9, teacher@vbmf, teacher@tucker=16,32,32,32,svd=64",
            )
        )
    if factorised:
        read_ranks(ranks)


def read_ranks(how: str) -> RankRule | Ranks:
    """What a student's name says of its ranks: a rule, a share of the energy, or the ranks.

    Raises `UsageError`, one line, for an unknown choice, or without tensorly.
    """
    found: RankRule | Ranks
    if how in ("half", "vbmf"):
        found = how
    elif how.startswith("energy="):
        try:
            found = read_float(how.removeprefix("energy="))
        except ValueError:
            found = math.nan
        if not 0 < found <= 1:
            raise UsageError(
                f"ranks '{how}': the share of the energy lies above 0 and is at most 1"
            )
    else:
        try:
            found = parse_ranks(how)
        except UsageError as error:
            raise UsageError(f"{error}; or choose half, energy=0.9 or vbmf") from None
    if importlib.util.find_spec("tensorly") is None:
        raise UsageError(
            f"ranks '{how}': factorised students need tensorly: {install_command('factorize')}"
        )
    return found


def unknown(kind: str, name: str, names: list[str], others: str) -> str:
    """One line on a name that is not known, with what is, and the nearest of `names`."""
    known = f"choose one of {', '.join(names)}, or {others}"
    return f"unknown {kind} '{name}': {known}{did_you_mean(name, names)}"


def _check_ranks(name: str, sizes: Architecture) -> None:
    if sizes.tucker is not None:
        first, second, third = sizes.filters
        layers = (
            (sizes.tucker[:2], (first, second), KERNELS[1]),
            (sizes.tucker[2:], (second, third), KERNELS[2]),
        )
        for (inner, outer), (inputs, outputs), kernel in layers:
            most_in, most_out = min(inputs, outer * kernel**2), min(outputs, inner * kernel**2)
            if inner > most_in or outer > most_out:
                raise UsageError(
                    f"network '{name}': the ranks {inner},{outer} of a convolution of {inputs} "
                    f"to {outputs} channels are too high: {most_in},{most_out} at most"
                )
    if sizes.svd is not None and sizes.svd > sizes.hidden:
        raise UsageError(
            f"network '{name}': rank {sizes.svd} of a dense layer of {sizes.hidden} units is too "
            f"high: {sizes.hidden} at most"
        )
