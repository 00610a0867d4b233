"""Reads PTX text: kernels, registers, shared variables and instructions with their lines.

Only what the text says is held here; what an instruction means is known by the engine alone. Scopes
of inline assembly (``{ .reg .pred p; ... }``) are resolved: each register has a row of its own,
each label one index.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field


class PtxError(ValueError):
    """The text is not PTX that the emulator reads: what and in which line."""


TOKEN = re.compile(
    r"""(?P<skip>[ \t\r]+|//[^\n]*|/\*.*?\*/)|(?P<newline>\n)|(?P<string>"[^"\n]*")
    |(?P<number>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?
        |\d+\.\d*(?:[eE][-+]?\d+)?|\d+U?(?![\w.]))
    |(?P<word>[%$A-Za-z_.][\w$.%]*(?:::[\w$.]+)*|\d[\w$.]*)
    |(?P<mark>[-+{}()\[\],;:@!|<>=*~&?/^])""",
    re.X | re.S,
)
BITS = {"pred": 1} | {f"{kind}{bits}": bits for kind in "busf" for bits in (8, 16, 32, 64, 128)}
BITS |= {"f16x2": 32, "bf16": 16, "bf16x2": 32, "tf32": 32}
SPECIAL = {f"%{name}.{axis}": 32 for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL |= {
    f"%{name}.{axis}": 32 for name in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid")
    for axis in "xyz"
}  # fmt: skip
SPECIAL |= dict.fromkeys(
    """%laneid %warpid %nwarpid %smid %nsmid %gridid %clock %cluster_ctarank %cluster_nctarank
    %dynamic_smem_size %total_smem_size %is_explicit_cluster %lanemask_eq %lanemask_lt %lanemask_le
    %lanemask_gt %lanemask_ge""".split(),
    32,
)
SPECIAL |= {"%clock64": 64, "%globaltimer": 64}

# Operand kinds of the encoded form (engine/program.h reads the same numbers).
REGISTER, CONSTANT, MEMORY, LABEL, SINK = range(5)


@dataclass
class Variable:
    """A shared, local, global or constant variable: its alignment and size in bytes."""

    name: str
    align: int
    size: int
    data: bytes | None = None
    offset: int = 0


@dataclass
class Parameter:
    """A kernel parameter: type as written (``b8`` of an array); size, align, offset in bytes."""

    name: str
    type: str
    size: int
    align: int
    offset: int
    pointer: bool


@dataclass
class Operand:
    """kind as above; index: row of the register file or constant; group: the operand's place."""

    kind: int
    index: int
    bits: int
    offset: int
    negated: bool
    group: int


@dataclass
class Instruction:
    """Opcode with modifiers, operands flattened, row of the guard (-1 without) and lines."""

    opcode: str
    operands: list[Operand]
    guard: int
    guard_negated: bool
    line: int
    source: tuple[int, int]


@dataclass
class Kernel:
    """One entry, decoded: rows is the number of 32 x 32-bit rows of a warp's register file."""

    name: str
    parameters: list[Parameter]
    instructions: list[Instruction] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)
    rows: int = 0
    special: dict[str, int] = field(default_factory=dict)
    shared: list[Variable] = field(default_factory=list)
    shared_bytes: int = 0
    local_bytes: int = 0
    required_block: tuple[int, ...] | None = None
    maximum_block: tuple[int, ...] | None = None


@dataclass
class _Entry:
    """Where a kernel lies in the token list; its body is decoded at its first launch."""

    name: str
    start: int


def _tokens(text: str):
    line, position, out = 1, 0, []
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match:
            raise PtxError(f"line {line}: {text[position : position + 20]!r} is not PTX")
        position = match.end()
        if match.lastgroup == "newline":
            line += 1
        elif match.lastgroup == "skip":
            line += match.group().count("\n")
        else:
            out.append((match.group(), line, match.lastgroup))
    return out


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def _number(text: str) -> int:
    text = text.rstrip("U")
    if text[:2] in ("0f", "0F"):
        return int(text[2:], 16)
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    if "." in text:
        return struct.unpack("<Q", struct.pack("<d", float(text)))[0]
    if text[:1] == "0" and text.isdigit() and len(text) > 1:
        return int(text, 8)
    return int(text, 0)


class Source:
    """A whole PTX text: ``kernels`` names its entries; ``kernel(name)`` decodes one."""

    def __init__(self, text: str):
        """Raises PtxError where the text is not PTX or has no entry."""
        self.text = text
        self.lines = text.split("\n")
        self.tokens = _tokens(text)
        self.files: dict[int, str] = {}
        self.globals: dict[str, Variable] = {}
        self.module_shared: list[Variable] = []
        self.dynamic_shared: set[str] = set()
        self.target = ""
        self.entries: dict[str, _Entry] = {}
        self._decoded: dict[str, Kernel] = {}
        self._scan()
        if not self.entries:
            raise PtxError(
                "no .entry in this text: is it PTX, and is a kernel defined or instantiated?"
            )

    @property
    def kernels(self) -> list[str]:
        """Names of the entries."""
        return list(self.entries)

    def kernel(self, name: str) -> Kernel:
        """Decodes the entry; KeyError names those that exist."""
        if name not in self.entries:
            raise KeyError(f"no kernel {name!r}; this module has {', '.join(self.entries)}")
        if name not in self._decoded:
            reader = _KernelReader(self, self.entries[name])
            try:
                self._decoded[name] = reader.read()
            except IndexError:
                raise PtxError(f"line {self.tokens[-1][1]}: the text breaks off") from None
        return self._decoded[name]

    def _scan(self) -> None:
        """Walks the module level: directives, variables, heads of kernels; bodies are skipped."""
        at, tokens = 0, self.tokens
        while at < len(tokens):
            word, line, _ = tokens[at]
            if word == ".target":
                self.target = tokens[at + 1][0]
                at += 2
                while at < len(tokens) and tokens[at][0] == ",":
                    at += 2
            elif word in (".version", ".address_size"):
                at += 2
                while at < len(tokens) and tokens[at][1] == line:
                    at += 1
            elif word == ".file":
                self.files[_number(tokens[at + 1][0])] = tokens[at + 2][0].strip('"')
                at = self._skip_line(at)
            elif word == ".entry":
                self.entries[tokens[at + 1][0]] = _Entry(tokens[at + 1][0], at)
                at = self._skip_body(at)
            elif word == ".func":
                at = self._skip_body(at)
            elif word == ".section":
                at = self._skip_body(at)
            elif word in (".global", ".const", ".shared"):
                at, variable, empty = self.variable(at)
                if word == ".shared":
                    self.module_shared.append(variable)
                    if empty:
                        self.dynamic_shared.add(variable.name)
                else:
                    self.globals[variable.name] = variable
            else:
                at += 1

    def _skip_line(self, at: int) -> int:
        line = self.tokens[at][1]
        while at < len(self.tokens) and self.tokens[at][1] == line:
            at += 1
        return at

    def _skip_body(self, at: int) -> int:
        """Past the body's closing brace, or past the semicolon of a declaration without one."""
        depth = 0
        while at < len(self.tokens):
            word = self.tokens[at][0]
            if word == ";" and depth == 0:
                return at + 1
            if word == "{":
                depth += 1
            elif word == "}":
                depth -= 1
                if depth == 0:
                    return at + 1
            at += 1
        return at

    def variable(self, at: int) -> tuple[int, Variable, bool]:
        """Reads ``.space .align 4 .b8 name[16] = {...};`` from its state space on."""
        align, size, name, count, empty, data = 0, 0, "", 1, False, None
        at += 1
        while self.tokens[at][0] != ";":
            word = self.tokens[at][0]
            if word == ".align":
                align = _number(self.tokens[at + 1][0])
                at += 2
            elif word == "[":
                if self.tokens[at + 1][0] == "]":
                    empty, count = True, 0
                    at += 2
                else:
                    count *= _number(self.tokens[at + 1][0])
                    at += 3
            elif word == "=":
                data, at = [], at + 1
                while self.tokens[at][0] != ";":
                    if self.tokens[at][2] == "number":
                        data.append(_number(self.tokens[at][0]))
                    at += 1
            elif word.startswith(".") and word[1:] in BITS:
                size = BITS[word[1:]] // 8
                at += 1
            elif word.startswith("."):
                at += 1
            else:
                name = word
                at += 1
        raw = None
        if data is not None:
            raw = b"".join((v & (1 << 8 * size) - 1).to_bytes(size, "little") for v in data)
            raw = raw.ljust(size * count, b"\0")
        return at + 1, Variable(name, align or size or 1, size * count, raw), empty


class _Scope:
    def __init__(self, parent):
        self.parent, self.names, self.labels = parent, {}, {}

    def find(self, table: str, name: str):
        scope = self
        while scope:
            if name in getattr(scope, table):
                return getattr(scope, table)[name]
            scope = scope.parent
        return None


class _KernelReader:
    """Reads one entry's tokens once, front to back."""

    def __init__(self, source: Source, entry: _Entry):
        self.source, self.tokens, self.at = source, source.tokens, entry.start + 2
        self.kernel = Kernel(entry.name, [])
        self.scope = _Scope(None)
        self.constant_index: dict[int, int] = {}
        self.fixups: list[tuple[Operand, str, _Scope, int]] = []
        self.loc = (0, 0)
        self.symbols: dict[str, int] = {}
        self.opcode = ""

    def read(self) -> Kernel:
        self._head()
        self._place_shared()
        for name, bits in SPECIAL.items():
            self.kernel.special[name] = self._declare(name, bits)
        self._body()
        for operand, name, scope, line in self.fixups:
            target = scope.find("labels", name)
            if target is None:
                raise PtxError(
                    f"line {line}: {name!r} is neither a register, a variable nor a label here"
                )
            operand.index = target
        return self.kernel

    def _head(self) -> None:
        offset = 0
        if self._peek() == "(":
            self.at += 1
            while self._peek() != ")":
                if self._peek() == ",":
                    self.at += 1
                offset = self._parameter(offset)
            self.at += 1
        while self._peek() != "{":
            word = self._next()
            if word == ".reqntid":
                self.kernel.required_block = self._triple()
            elif word == ".maxntid":
                self.kernel.maximum_block = self._triple()
            elif word == ".reqnctapercluster" and (cluster := self._triple()) != (1, 1, 1):
                raise PtxError(
                    f"line {self._line()}: {self.kernel.name} was compiled for clusters of "
                    f"{cluster}; clusters of one block are emulated"
                )
        self.at += 1

    def _triple(self) -> tuple[int, int, int]:
        values = [_number(self._next())]
        while self._peek() == ",":
            self.at += 1
            values.append(_number(self._next()))
        return tuple(values + [1] * (3 - len(values)))

    def _parameter(self, offset: int) -> int:
        kind, align, count, pointer = "", 0, 1, False
        if self._next() != ".param":
            raise PtxError(f"line {self._line()}: expected .param")
        while self._peek().startswith("."):
            word = self._next()
            if word == ".align":
                align = _number(self._next())
            elif word == ".ptr":
                pointer = True
            elif word[1:] in BITS:
                kind = word[1:]
        # ".ptr .global .align 1" carries the alignment of what is pointed at, not of the parameter
        name = self._next()
        if self._peek() == "[":
            count = _number(self.tokens[self.at + 1][0])
            self.at += 3
        size = BITS[kind] // 8
        align = size if pointer or not align else align
        offset = _align(offset, align)
        self.kernel.parameters.append(Parameter(name, kind, size * count, align, offset, pointer))
        self.symbols[name] = offset
        return offset + size * count

    def _place_shared(self) -> None:
        """Static variables, the module's that the kernel names and its own; then dynamic ones."""
        end, tokens, depth, names, own = self.at, self.tokens, 1, set(), []
        while depth and end < len(tokens):
            word = tokens[end][0]
            if word == ".shared":
                own.append(self.source.variable(end)[1])
            depth += (word == "{") - (word == "}")
            names.add(word)
            end += 1
        offset = 0
        used = [v for v in self.source.module_shared if v.name in names]
        for variable in [*(v for v in used if v.name not in self.source.dynamic_shared), *own]:
            offset = _align(offset, variable.align)
            self.symbols[variable.name] = offset
            offset += variable.size
            self.kernel.shared.append(variable)
        self.kernel.shared_bytes = offset
        dynamic = [v for v in used if v.name in self.source.dynamic_shared]
        if dynamic:
            offset = _align(offset, max(v.align for v in dynamic))
            self.kernel.shared_bytes = offset
            for variable in dynamic:
                self.symbols[variable.name] = offset
        for name, variable in self.source.globals.items():
            if name in names:
                self.symbols[name] = variable.offset

    def _body(self) -> None:
        depth = 1
        while depth:
            if self.at >= len(self.tokens):
                raise PtxError(f"kernel {self.kernel.name}: its body does not end")
            word = self._peek()
            if word == "{":
                self.scope, depth, self.at = _Scope(self.scope), depth + 1, self.at + 1
            elif word == "}":
                self.scope, depth, self.at = self.scope.parent or self.scope, depth - 1, self.at + 1
            elif word == ";":
                self.at += 1
            elif word == ".reg":
                self._registers()
            elif word in (".shared", ".local"):
                self._own_variable(word)
            elif word == ".loc":
                self._loc()
            elif word == ".param":
                self._call_parameter()
            elif word == ".pragma":
                self.at += 3
            elif word.startswith("."):
                raise PtxError(f"line {self._line()}: directive {word} is not known")
            elif self.tokens[self.at + 1][0] == ":" and word != "@":
                self.scope.labels[word] = len(self.kernel.instructions)
                self.at += 2
            else:
                self._instruction()

    def _call_parameter(self) -> None:
        """``.param .b64 name;`` before a call: only its name matters, the call is refused."""
        self.at, variable, _ = self.source.variable(self.at)
        self.scope.names[variable.name] = ("constant", 0)

    def _registers(self) -> None:
        self.at += 1
        kind = self._next()[1:]
        while kind.startswith("v") and kind not in BITS:
            kind = self._next()[1:]
        while True:
            name = self._next()
            if self._peek() == "<":
                for i in range(_number(self.tokens[self.at + 1][0])):
                    self._declare(f"{name}{i}", BITS[kind])
                self.at += 3
            else:
                self._declare(name, BITS[kind])
            if self._next() == ";":
                return

    def _declare(self, name: str, bits: int) -> int:
        row = self.kernel.rows
        self.scope.names[name] = ("register", row, bits)
        self.kernel.rows += max(1, bits // 32)
        return row

    def _own_variable(self, space: str) -> None:
        self.at, variable, _ = self.source.variable(self.at)
        if space == ".shared":
            return  # has its place already
        offset = _align(self.kernel.local_bytes, variable.align)
        self.symbols[variable.name] = offset
        self.kernel.local_bytes = offset + variable.size

    def _loc(self) -> None:
        line = self._line()
        self.loc = (_number(self.tokens[self.at + 1][0]), _number(self.tokens[self.at + 2][0]))
        while self.at < len(self.tokens) and self._line() == line:
            self.at += 1

    def _instruction(self) -> None:
        line, guard, negated = self._line(), -1, False
        if self._peek() == "@":
            self.at += 1
            if self._peek() == "!":
                negated, self.at = True, self.at + 1
            name = self._next()
            found = self.scope.find("names", name)
            if not found or found[2] != 1:
                raise PtxError(f"line {line}: guard {name!r} is not a predicate register")
            guard = found[1]
        opcode = self.opcode = self._next()
        operands: list[Operand] = []
        group = 0
        while self._peek() != ";":
            if self._peek() in (",", "|"):
                group += 1
                self.at += 1
                continue
            self._operand(operands, group)
        self.at += 1
        self.kernel.instructions.append(
            Instruction(opcode, operands, guard, negated, line, self.loc)
        )

    def _operand(self, out: list[Operand], group: int) -> None:
        word = self._peek()
        if word in "{(":
            self.at += 1
            while self._peek() not in "})":
                if self._peek() == ",":
                    self.at += 1
                    continue
                self._operand(out, group)
            self.at += 1
            return
        if word == "[":
            self.at += 1
            first = len(out)
            while self._peek() != "]":
                if self._peek() == ",":
                    self.at += 1
                    continue
                if self._peek() in "+-":
                    sign = -1 if self._next() == "-" else 1
                    if self._peek() == "-":
                        sign, self.at = -sign, self.at + 1
                    out[first].offset += sign * _number(self._next())
                    continue
                self._operand(out, group)
            self.at += 1
            out[first].negated = False
            out[first].kind = MEMORY + 8 * out[first].kind
            return
        negated = False
        while self._peek() in ("!", "-"):
            negated, self.at = True, self.at + 1
        out.append(self._leaf(negated, group))

    def _leaf(self, negated: bool, group: int) -> Operand:
        word, line, kind = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            value = _number(word)
            if "." in word and self.opcode.endswith(".f32"):
                value = struct.unpack("<I", struct.pack("<f", float(word)))[0]
            return self._constant(-value if negated else value, group)
        if word == "_":
            return Operand(SINK, 0, 0, 0, False, group)
        found = self.scope.find("names", word)
        if found and found[0] == "register":
            return Operand(REGISTER, found[1], found[2], 0, negated, group)
        if found:
            return self._constant(found[1], group)
        if word in self.symbols:
            return self._constant(self.symbols[word], group)
        if word == "WARP_SZ":
            return self._constant(32, group)
        operand = Operand(LABEL, -1, 0, 0, False, group)
        if not word.startswith("__") and word != "vprintf":
            self.fixups.append((operand, word, self.scope, line))
        return operand

    def _constant(self, value: int, group: int) -> Operand:
        value &= (1 << 64) - 1
        index = self.constant_index.setdefault(value, len(self.kernel.constants))
        if index == len(self.kernel.constants):
            self.kernel.constants.append(value)
        return Operand(CONSTANT, index, 64, 0, False, group)

    def _peek(self) -> str:
        return self.tokens[self.at][0]

    def _next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][0]

    def _line(self) -> int:
        return self.tokens[self.at][1]


def encode(kernel: Kernel) -> bytes:
    """The engine's form: counts, instructions, operands, constants, then opcodes as text."""
    opcodes: dict[str, int] = {}
    instructions, operands = bytearray(), bytearray()
    count = 0
    for item in kernel.instructions:
        opcode = opcodes.setdefault(item.opcode, len(opcodes))
        instructions += struct.pack(
            "<8i", opcode, item.guard, item.guard_negated, count, len(item.operands), item.line,
            item.source[0], item.source[1],
        )  # fmt: skip
        for o in item.operands:
            operands += struct.pack("<5iq", o.kind, o.index, o.bits, o.negated, o.group, o.offset)
        count += len(item.operands)
    names = "\n".join(opcodes).encode()
    constants = struct.pack(f"<{len(kernel.constants)}Q", *kernel.constants)
    head = struct.pack(
        "<6i", len(kernel.instructions), count, len(kernel.constants), kernel.rows, len(names),
        kernel.local_bytes,
    )  # fmt: skip
    return head + bytes(instructions) + bytes(operands) + constants + names
