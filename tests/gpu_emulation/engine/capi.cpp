// The C interface that Python's ctypes calls: decode a program, describe a launch, run it, read its
// counters.
#include <algorithm>
#include <cstdio>

#include "machine.h"

using namespace emu;

namespace {
thread_local std::string message;

Opcode split(const std::string& text) {
    Opcode op;
    op.text = text;
    std::string_view rest = op.text;
    bool first = true;
    while (!rest.empty()) {
        size_t dot = rest.find('.');
        auto part = rest.substr(0, dot);
        if (first)
            op.base = part;
        else
            op.modifiers.push_back(part);
        first = false;
        rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
    }
    if (op.modifiers.empty()) op.modifiers.push_back("");
    return op;
}

bool bind(const Opcode& op, Instruction& in) {
    for (auto binder : {bind_control, bind_memory, bind_async, bind_mma, bind_warp, bind_convert,
                        bind_alu, bind_mbarrier, bind_bulk, bind_wgmma}) {
        in.handler = nullptr;
        std::fill(in.mode, in.mode + 6, 0);
        in.sync_mask = -1, in.aligned = in.control = false;
        if (binder(op, in) && in.handler) return true;
    }
    return false;
}

Step unknown(Warp& w, Group&, const Instruction&, uint32_t) {
    w.fault("this instruction is not emulated");
}
}  // namespace

extern "C" {

const char* emu_message() { return message.c_str(); }

// Decodes what ptx.encode wrote. Null and a message where it is not understood.
void* emu_decode(const uint8_t* data, const char* name) {
    auto program = std::make_unique<Program>();
    program->name = name;
    int32_t head[6];
    std::memcpy(head, data, sizeof head);
    const uint8_t* p = data + sizeof head;
    const uint8_t *instructions = p, *operands = p + int64_t{head[0]} * 32,
                  *constants = operands + int64_t{head[1]} * 28,
                  *names = constants + int64_t{head[2]} * 8;
    program->rows = head[3], program->local_bytes = head[5];
    std::string all(reinterpret_cast<const char*>(names), head[4]);
    for (size_t at = 0; at <= all.size();) {
        size_t end = std::min(all.find('\n', at), all.size());
        program->opcodes.push_back(all.substr(at, end - at));
        at = end + 1;
    }
    program->operands.resize(head[1]);
    for (int i = 0; i < head[1]; ++i) {
        int32_t f[5];
        Operand& o = program->operands[i];
        std::memcpy(f, operands + int64_t{i} * 28, 20);
        std::memcpy(&o.offset, operands + int64_t{i} * 28 + 20, 8);
        o.kind = f[0], o.index = f[1], o.bits = f[2], o.negated = f[3], o.group = f[4];
        if (o.kind == kSink) o.index = program->rows;
    }
    program->constants.resize(size_t{96} * head[2]);
    for (int i = 0; i < head[2]; ++i) {
        uint64_t value;
        std::memcpy(&value, constants + int64_t{i} * 8, 8);
        uint32_t* row = program->constants.data() + int64_t{i} * 96;
        for (int l = 0; l < 32; ++l) {
            row[l] = static_cast<uint32_t>(value);
            std::memcpy(row + 32 + 2 * l, &value, 8);
        }
    }
    std::vector<Opcode> parsed;
    for (auto& text : program->opcodes) parsed.push_back(split(text));
    program->code.resize(head[0]);
    for (int i = 0; i < head[0]; ++i) {
        int32_t f[8];
        std::memcpy(f, instructions + int64_t{i} * 32, 32);
        Instruction& in = program->code[i];
        in.opcode = f[0], in.guard = f[1], in.guard_negated = f[2],
        in.ops = program->operands.data() + f[3], in.count = f[4];
        in.line = f[5], in.file = f[6], in.source_line = f[7];
        if (!bind(parsed[in.opcode], in)) in.handler = unknown;
    }
    return program.release();
}

void emu_free(void* program) { delete static_cast<Program*>(program); }

// Lines of instructions that no handler knows, as "line opcode" texts; they fault when reached.
const char* emu_unknown(void* handle) {
    auto* program = static_cast<Program*>(handle);
    message.clear();
    for (auto& in : program->code)
        if (in.handler == unknown)
            message += std::to_string(in.line) + " " + program->opcodes[in.opcode] + "\n";
    return message.c_str();
}

struct BufferArgument {
    const char* name;
    void* host;
    uint64_t size;
    int32_t writable, uninitialised;
};

struct BufferCounters {
    uint64_t requests[2], asked[2], distinct[2], sectors[2], lines[2];
};

// Addresses of the buffers, in order, as the kernel will see them.
void emu_addresses(const uint64_t* sizes, int32_t n, uint64_t* out) {
    uint64_t at = kGlobal;
    for (int i = 0; i < n; ++i) {
        out[i] = at;
        at += (sizes[i] + kGap + 1023) / 1024 * 1024;
    }
}

int emu_launch(void* handle, const uint32_t* grid, const uint32_t* block, const uint8_t* params,
               uint64_t param_bytes, const BufferArgument* buffers, int32_t n,
               uint32_t static_shared, uint32_t dynamic_shared, const int32_t* special,
               int32_t specials, uint64_t seed, uint64_t limit, uint32_t resident, int32_t races,
               int32_t spread, Counters* counters, BufferCounters* per_buffer) {
    Machine m;
    m.program = static_cast<Program*>(handle);
    std::copy(grid, grid + 3, m.grid);
    std::copy(block, block + 3, m.threads);
    m.params.assign(params, params + param_bytes);
    m.shared_bytes = static_shared + dynamic_shared, m.dynamic_bytes = dynamic_shared;
    m.special.assign(special, special + specials);
    m.seed = seed, m.limit = limit, m.resident = resident, m.check_races = races,
    m.spread_poison = spread;
    std::vector<uint64_t> sizes, bases(n);
    for (int i = 0; i < n; ++i) sizes.push_back(buffers[i].size);
    emu_addresses(sizes.data(), n, bases.data());
    for (int i = 0; i < n; ++i) {
        Buffer b;
        b.name = buffers[i].name, b.base = bases[i], b.size = buffers[i].size,
        b.host = static_cast<uint8_t*>(buffers[i].host), b.writable = buffers[i].writable;
        b.uninitialised = buffers[i].uninitialised;
        if (b.uninitialised) b.writers.resize(b.size);
        for (auto& t : b.touched) t.assign(b.size / 64 + 1, 0);
        m.buffers.push_back(std::move(b));
    }
    int status = 0;
    try {
        m.run();
    } catch (const std::exception& fault) {
        message = fault.what();
        status = 1;
    }
    *counters = m.counters;
    for (int i = 0; i < n; ++i) {
        Buffer& b = m.buffers[i];
        BufferCounters& c = per_buffer[i];
        for (int d = 0; d < 2; ++d) {
            c.requests[d] = b.requests[d], c.asked[d] = b.asked[d], c.sectors[d] = b.sectors[d],
            c.lines[d] = b.lines[d], c.distinct[d] = 0;
            for (uint64_t word : b.touched[d]) c.distinct[d] += __builtin_popcountll(word);
        }
    }
    return status;
}
}
