"""What a compiled program launches and moves, read from its text: the bodies of its loops.

A launch is an instruction that a GPU starts as a kernel of its own. What it moves is counted from
the shapes: of an array that is only sliced or gathered from, what is taken; of one that is written
in place, the rows written. Of caches nothing is known.
"""

import dataclasses
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
LAUNCHES = frozenset(
    "fusion custom-call dot convolution copy scatter sort reduce dynamic-update-slice".split()
)
TAKES = frozenset(("dynamic-slice", "gather", "slice"))
SAME = frozenset(("bitcast", "reshape", "convert"))  # of which each element is one of another's
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `shape` and `rest` as they are written."""

    root: bool
    name: str
    shape: str
    kind: str
    operands: list[str]
    given: str
    rest: str

    def named(self, attribute: str) -> str:
        """The computation that an attribute names."""
        return re.search(rf"{attribute}=%?([\w.\-]+)", self.rest).group(1)

    @property
    def launched(self) -> bool:
        """Whether it is a kernel; a buffer that is only reserved is not."""
        return self.kind in LAUNCHES and "AllocateBuffer" not in self.rest

    @property
    def where(self) -> str:
        """The JAX operation that it comes from, with the calls and loops around it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Loop:
    """One `while` of a program.

    Attributes:
      launches, megabytes: of a round, its condition with it, the loops inside not.
      inside: names of the bodies of those.
      where: the operation that comes first of those most deeply nested.
    """

    body: str
    launches: int
    megabytes: float
    inside: list[str]
    where: str


def loops(text: str) -> list[Loop]:
    """The loops of a compiled program."""
    computations = parse(text)
    found = []
    for computation in computations.values():
        for loop in computation:
            if loop.kind == "while":
                found.append(_loop(computations, loop.named("body"), loop.named("condition")))
    return found


def _loop(computations, body, condition) -> Loop:
    launched = [i for i in computations[body] if i.launched]
    shapes = {i.name: i.shape for i in computations[body]}
    moved = sum(traffic(computations, i, shapes) for i in launched)
    inside = [i.named("body") for i in computations[body] if i.kind == "while"]
    launches = len(launched) + sum(i.launched for i in computations[condition])
    where = max((i.where for i in launched), key=lambda w: w.count("while/body"), default="")
    return Loop(body, launches, moved / 1e6, inside, where)


def parse(text: str) -> dict[str, list[Instruction]]:
    """The computations of a program."""
    computations, current = {}, None
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[header.group(1)] = []
        elif current is not None and (found := _LINE.match(line)):
            root, name, shape, kind, rest = found.groups()
            given = _up_to_the_parenthesis(rest)
            operands = re.findall(r"%([\w.\-]+)", given)
            entry = bool(root), name, shape, kind, operands, given, rest[len(given) :]
            current.append(Instruction(*entry))
    return computations


def _up_to_the_parenthesis(text: str) -> str:
    depth = 1
    for at, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return text[:at]
    return text


def traffic(computations: dict, instruction: Instruction, shapes: dict[str, str]) -> int:
    """Bytes that an instruction reads and writes."""
    read = [shapes.get(name, "") for name in instruction.operands]
    if instruction.kind == "dynamic-update-slice":
        return 2 * size(read[1])
    if instruction.kind != "fusion":
        return size(instruction.shape) + sum(map(size, read))
    inner = computations[instruction.named("calls")]
    return _read(inner) + sum(_written(inner, name) for name in _results(inner))


def _read(inner: list[Instruction]) -> int:
    """Bytes that a fusion reads of its parameters."""
    total, source = 0, {i.name: i.name for i in inner if i.kind == "parameter"}
    uses: dict[str, list] = {name: [] for name in source}
    whole = {i.name: size(i.shape) for i in inner}
    for i in inner:
        for place, name in enumerate(i.operands):
            if name not in source:
                continue
            if i.kind in SAME:
                source[i.name] = source[name]
            elif place == 0 and i.kind in TAKES:
                uses[source[name]].append(whole[i.name])
            elif place != 0 or i.kind not in ("dynamic-update-slice", "scatter"):
                uses[source[name]].append(whole[source[name]])
    for name, taken in uses.items():
        total += min(sum(taken), whole[name])
    return total


def _results(inner: list[Instruction]) -> list[str]:
    [root] = [i for i in inner if i.root]
    return root.operands if root.kind == "tuple" else [root.name]


def _written(inner: list[Instruction], name: str) -> int:
    """Bytes of a result of a fusion; of one written in place, those of the rows."""
    by_name = {i.name: i for i in inner}
    made = by_name[name]
    while made.kind in SAME and made.operands and made.operands[0] in by_name:
        made = by_name[made.operands[0]]
    if made.kind == "dynamic-update-slice":
        return size(by_name[made.operands[1]].shape)
    if made.kind == "scatter":
        return size(by_name[made.operands[-1]].shape)
    return size(made.shape)


def size(shape: str) -> int:
    """Bytes of a shape as it is written, of a tuple those of all."""
    total = 0
    for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        count = 1
        for dimension in filter(None, dimensions.split(",")):
            count *= int(dimension)
        total += count * BYTES.get(dtype, 4)
    return total
