// The decoded program: what the Python reader sends (ptx.py, encode) with each opcode bound to its
// handler once.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace emu {

struct Group;
struct Warp;
struct Instruction;

enum class Step : uint8_t { kNext, kBranch, kBlock, kRetry, kExit };  // kRetry: blocks, then again
using Handler = Step (*)(Warp&, Group&, const Instruction&, uint32_t mask);

// ptx.py writes MEMORY + 8 * (kind of the base); kLabel holds an instruction index.
enum Kind : int32_t { kRegister, kConstant, kMemory, kLabel, kSink };

struct Operand {
    int32_t kind, index, bits, negated, group;
    int64_t offset;
    bool is_memory() const { return (kind & 7) == kMemory; }
    bool is_register() const { return (is_memory() ? kind >> 3 : kind) == kRegister; }
};

// Classes of the counters; counters.py names them in this order.
enum class Class : uint8_t {
    kInteger,
    kFloat,
    kHalf,
    kConvert,
    kMove,
    kPredicate,
    kGlobal,
    kShared,
    kLocal,
    kParam,
    kAsync,
    kAtomic,
    kMma,
    kMmaSparse,
    kControl,
    kBarrier,
    kShuffle,
    kCount
};

struct Instruction {
    Handler handler = nullptr;
    const Operand* ops = nullptr;
    int32_t count = 0, guard = -1;
    bool guard_negated = false;
    bool control = false;  // may change the groups of a warp: the scheduler looks again afterwards
    bool aligned = false;  // all live lanes of the warp must arrive together
    int32_t sync_mask = -1;  // operand that names the lanes to wait for, or -1
    Class kind = Class::kInteger;
    // What the modifiers said; each handler's binder gives these their meaning.
    int32_t mode[6] = {};
    int32_t line = 0, file = 0, source_line = 0;
    int32_t opcode = 0;
};

struct Program {
    std::vector<Instruction> code;
    std::vector<Operand> operands;
    std::vector<uint32_t> constants;  // per constant 32 x 32 bits, then 32 x 64 bits
    std::vector<std::string> opcodes;
    int32_t rows = 0, local_bytes = 0;
    std::string name;
};

// The opcode split at its dots: "ld.shared.v4.b32" -> base "ld", then modifiers.
struct Opcode {
    std::string_view base;
    std::vector<std::string_view> modifiers;
    std::string_view text;
    bool has(std::string_view m) const {
        for (auto x : modifiers)
            if (x == m) return true;
        return false;
    }
    std::string_view last(int back = 0) const {
        return back < static_cast<int>(modifiers.size()) ? modifiers[modifiers.size() - 1 - back]
                                                         : std::string_view();
    }
};

// Binds the opcode to a handler or returns false where these modifiers are not known. One function
// a file of handlers.
bool bind_alu(const Opcode&, Instruction&);
bool bind_convert(const Opcode&, Instruction&);
bool bind_memory(const Opcode&, Instruction&);
bool bind_async(const Opcode&, Instruction&);
bool bind_mma(const Opcode&, Instruction&);
bool bind_control(const Opcode&, Instruction&);
bool bind_warp(const Opcode&, Instruction&);
bool bind_mbarrier(const Opcode&, Instruction&);
bool bind_bulk(const Opcode&, Instruction&);
bool bind_wgmma(const Opcode&, Instruction&);

}  // namespace emu
