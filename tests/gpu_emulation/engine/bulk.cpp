// cp.async.bulk and cp.async.bulk.tensor (TMA): one thread moves a piece of memory or a tensor's
// box.
//
//   load    at issue: the destination is poisoned, whoever used it must have come before
//           when its mbarrier is waited for (mbarrier.cpp): the source is read, the bytes land
//   store   at issue: the source must be written, made visible by fence.proxy.async
//           at wait_group: the source is read as it is then, and written to global memory
//
//   a tensor's box lies in shared memory row after row, the innermost dimension first; with a
//   swizzle the 16-byte pieces of its rows change places (tensor_map.h)
// Source: PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
#include <bit>
#include <utility>

#include "machine.h"
#include "modifiers.h"
#include "tensor_map.h"

namespace emu {

void land(Block& b, const BulkCopy& copy) {
    Warp& w = b.warps[copy.warp];
    w.current = copy.from, w.current_mask = 1u << copy.lane;
    for (const BulkCopy::Piece& piece : copy.pieces) {
        uint8_t* to = b.shared.data() + piece.shared;
        if (piece.global) {
            uint64_t unwritten;
            std::memcpy(to, global_read(w, copy.lane, piece.global, piece.bytes, &unwritten),
                        piece.bytes);
            if (unwritten) w.fault("uninitialised global memory is copied", copy.lane);
        } else {
            std::memset(to, copy.fill, piece.bytes);
        }
        std::memset(b.poison.data() + piece.shared, 0, piece.bytes);
    }
}

static void land_store(Warp& w, const BulkCopy& copy) {
    for (const BulkCopy::Piece& piece : copy.pieces) {
        if (!piece.global) continue;
        shared_read(w, copy.lane, piece.shared, piece.bytes);
        if (shared_poison(w, piece.shared, piece.bytes))
            w.fault("the source of a bulk store was overwritten before its wait", copy.lane);
        const uint8_t* from = w.block->shared.data() + piece.shared;
        std::memcpy(global_write(w, copy.lane, piece.global, piece.bytes, from), from, piece.bytes);
    }
}

void check_ended(Warp& w) {
    for (auto& lane : w.stores)
        if (!lane.open.empty() || !lane.sent.empty()) {
            const BulkCopy& copy = lane.open.empty() ? lane.sent[0][0] : lane.open[0];
            w.current = copy.from;
            w.fault("the block ends while a bulk store still reads its shared memory: "
                    "cp.async.bulk.wait_group is missing",
                    copy.lane);
        }
    if (wgmma_in_flight(w)) w.fault("the warp ends with a wgmma in flight: no wait_group");
}

namespace {

constexpr uint32_t kPiece = 64;  // bytes; global_read tells of so many which are uninitialised

const TensorMap& tensor_map(Warp& w, int lane, uint64_t at) {
    const uint8_t* p;
    if (at >= kParamWindow && at < kParamWindow + kWindow) {
        if (at - kParamWindow + 128 > w.machine->params.size())
            w.fault("the tensor map lies outside the parameters", lane);
        p = w.machine->params.data() + (at - kParamWindow);
    } else {
        uint64_t unwritten;
        p = global_read(w, lane, at, 64, &unwritten);
        global_read(w, lane, at + 64, 64);
        if (unwritten) w.fault("the tensor map is uninitialised", lane);
    }
    if (at % 64) w.fault("a tensor map must be aligned to 64 bytes", lane);
    return *reinterpret_cast<const TensorMap*>(p);
}

// One row of a box in elements: `length` from shared memory's place on, those from `first` up to
// `last` inside the tensor, the row's element 0 at global address `at`.
void add_row(Warp& w, BulkCopy& copy, const TensorMap& map, uint32_t shared, uint64_t at,
             int64_t first, int64_t last, bool writing) {
    const int64_t size = element_bytes(map.type), length = map.box[0];
    if (first < last) {
        uint64_t from = at + static_cast<uint64_t>(first * size);
        if (Buffer* b = w.machine->find(from))
            count_row(*b, from, static_cast<uint64_t>((last - first) * size), writing);
    }
    const int64_t unit = map.swizzle ? 16 : kPiece;  // a swizzle sends 16-byte pieces apart
    for (auto [begin, end] : {std::pair{int64_t{0}, first}, {first, last}, {last, length}})
        for (int64_t e = begin, next; e < end; e = next) {
            next = std::min(end, (e * size / unit + 1) * unit / size);
            auto offset = static_cast<uint32_t>(e * size);
            copy.pieces.push_back({begin == first && end == last ? at + offset : 0,
                                   swizzled(shared + offset, map.swizzle),
                                   static_cast<uint32_t>((next - e) * size)});
        }
}

// The box at `corner` (elements, may lie outside) of the map.
void add_box(Warp& w, int lane, BulkCopy& copy, const TensorMap& map, const int32_t* corner,
             uint32_t shared, bool writing) {
    if (const char* why = refusal(map)) w.fault(std::string("the tensor map: ") + why, lane);
    const int64_t size = element_bytes(map.type), length = map.box[0];
    uint32_t rows = 1;
    for (int i = 1; i <= map.rank; ++i) rows *= map.box[i];
    copy.total = rows * static_cast<uint32_t>(length * size);
    copy.fill = map.fill ? 0xff : 0;
    const int64_t first = std::clamp<int64_t>(-int64_t{corner[0]}, 0, length),
                  last = std::clamp(static_cast<int64_t>(map.dim[0]) - corner[0], first, length);
    for (uint32_t r = 0; r < rows; ++r) {
        uint64_t at = map.address + static_cast<uint64_t>(corner[0] * size);
        bool inside = true;
        for (uint32_t i = 1, rest = r; i <= map.rank; rest /= map.box[i++]) {
            int64_t index = int64_t{corner[i]} + rest % map.box[i];
            inside &= index >= 0 && index < static_cast<int64_t>(map.dim[i]);
            at += static_cast<uint64_t>(index) * map.stride[i - 1];
        }
        auto place = shared + r * static_cast<uint32_t>(length * size);
        add_row(w, copy, map, place, at, inside ? first : length, inside ? last : length, writing);
    }
}

void issue_load(Warp& w, int lane, BulkCopy copy, uint64_t bar) {
    Block& b = *w.block;
    copy.stamp = ++b.copied;
    for (const BulkCopy::Piece& piece : copy.pieces) {
        check_shared(w, lane, piece.shared, piece.bytes, 1);
        async_write(w, lane, piece.shared, piece.bytes, copy.stamp);
    }
    mbarrier_at(w, lane, bar).copies.push_back(std::move(copy));
}

void issue_store(Warp& w, int lane, BulkCopy copy) {
    for (const BulkCopy::Piece& piece : copy.pieces) {
        check_shared(w, lane, piece.shared, piece.bytes, 1);
        if (piece.global) check_async_read(w, lane, piece.shared, piece.bytes);
    }
    w.stores[lane].open.push_back(std::move(copy));
}

void check_operands(Warp& w, const Instruction& in, uint32_t mask) {
    for (int i = 0; i < in.count; ++i)
        if (uint32_t bad = poisoned(w, in.ops[i]) & mask)
            w.fault("an operand is uninitialised", std::countr_zero(bad));
}

// cp.async.bulk [dst], [src], size{, [mbar]}. mode: storing
Step linear(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    check_operands(w, in, mask);
    bool storing = in.mode[0];
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t to = address(w, in.ops[0], l), from = address(w, in.ops[1], l),
                 shared = storing ? from : to, global = storing ? to : from,
                 bytes = lane_bits(w, in.ops[2], l);
        if (bytes % 16 || to % 16 || from % 16)
            w.fault("misaligned bulk copy: its addresses and size must be multiples of 16 bytes",
                    l);
        BulkCopy copy;
        copy.lane = l, copy.warp = static_cast<uint8_t>(w.index), copy.from = &in;
        copy.total = static_cast<uint32_t>(bytes);
        if (bytes) {
            check_shared(w, l, shared, bytes, 16);
            global_at(w, l, global, bytes, storing);
            count_row(*w.machine->find(global), global, bytes, storing);
            for (uint32_t i = 0; i < bytes; i += kPiece)
                copy.pieces.push_back({global + i, static_cast<uint32_t>(shared) + i,
                                       std::min(kPiece, static_cast<uint32_t>(bytes) - i)});
        }
        if (storing)
            issue_store(w, l, std::move(copy));
        else
            issue_load(w, l, std::move(copy), address(w, in.ops[3], l));
    }
    return Step::kNext;
}

// cp.async.bulk.tensor [dst], [map, {corner}], [mbar] or [map, {corner}], [src]. mode: storing,
// dimensions
Step tensor(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    check_operands(w, in, mask);
    bool storing = in.mode[0];
    int rank = in.mode[1];
    const Operand* map_operand = in.ops + !storing;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        const TensorMap& map = tensor_map(w, l, address(w, *map_operand, l));
        if (map.rank + 1 != rank)
            w.fault("the tensor map has " + std::to_string(map.rank + 1) + " dimensions", l);
        int32_t corner[5];
        for (int i = 0; i < rank; ++i)
            corner[i] = static_cast<int32_t>(lane_bits(w, map_operand[1 + i], l));
        const Operand& place = storing ? map_operand[1 + rank] : in.ops[0];
        auto shared = static_cast<uint32_t>(address(w, place, l));
        if (shared % (map.swizzle ? 128 : 16) || (!storing && shared % 128))
            w.fault("misaligned tensor copy: its shared address must be a multiple of 128 bytes",
                    l);
        BulkCopy copy;
        copy.lane = l, copy.warp = static_cast<uint8_t>(w.index), copy.from = &in;
        add_box(w, l, copy, map, corner, shared, storing);
        if (storing)
            issue_store(w, l, std::move(copy));
        else
            issue_load(w, l, std::move(copy), address(w, map_operand[1 + rank], l));
    }
    return Step::kNext;
}

Step commit(Warp& w, Group&, const Instruction&, uint32_t mask) {
    for (int l = 0; l < 32; ++l)
        if ((mask >> l & 1) && !w.stores[l].open.empty())
            w.stores[l].sent.push_back(std::exchange(w.stores[l].open, {}));
    return Step::kNext;
}

// wait_group{.read} n: reading the source and writing the destination are not told apart.
Step wait(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    size_t keep = lane_bits(w, in.ops[0], 0);
    for (int l = 0; l < 32; ++l) {
        auto& sent = w.stores[l].sent;
        while ((mask >> l & 1) && sent.size() > keep) {
            for (const BulkCopy& copy : sent.front()) land_store(w, copy);
            sent.erase(sent.begin());
        }
    }
    return Step::kNext;
}

enum Field : int32_t {
    kAddress,
    kRank,
    kBox,
    kDim,
    kStride,
    kStep,
    kType,
    kInterleave,
    kSwizzle,
    kFill
};

// tensormap.replace.tile.field [map]{, index}, value; the map lies in shared memory. mode: field
Step replace(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    check_operands(w, in, mask);
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, in.ops[0], l), value = lane_bits(w, in.ops[in.count - 1], l);
        auto index = in.count > 2 ? lane_bits(w, in.ops[1], l) : 0;
        if (at >= kSharedWindow && at < kSharedWindow + kWindow) at -= kSharedWindow;
        check_shared(w, l, at, 128, 64);
        auto& map = *reinterpret_cast<TensorMap*>(w.block->shared.data() + at);
        if (shared_poison(w, static_cast<uint32_t>(at), 128))
            w.fault("the tensor map is uninitialised: zero its 128 bytes first", l);
        shared_write(w, l, static_cast<uint32_t>(at), 128);
        if (index > (in.mode[0] == kStride ? 3 : 4)) w.fault("a tensor map's index is 0 to 4", l);
        auto byte = static_cast<uint8_t>(value);
        switch (in.mode[0]) {
            case kAddress: map.address = value; break;
            case kRank: map.rank = byte; break;
            case kBox: map.box[index] = static_cast<uint32_t>(value); break;
            case kDim: map.dim[index] = value; break;
            case kStride: map.stride[index] = value; break;
            case kStep: map.step[index] = byte; break;
            case kType: map.type = byte; break;
            case kInterleave: map.interleave = byte; break;
            case kSwizzle: map.swizzle = byte; break;
            case kFill: map.fill = byte; break;
        }
    }
    return Step::kNext;
}

// tensormap.cp_fenceproxy [global], [shared], 128: the warp copies a map that it made.
Step publish(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    int lane = std::countr_zero(mask);
    uint64_t to = address(w, in.ops[0], lane), from = address(w, in.ops[1], lane);
    if (from >= kSharedWindow && from < kSharedWindow + kWindow) from -= kSharedWindow;
    check_shared(w, lane, from, 128, 64);
    if (shared_poison(w, static_cast<uint32_t>(from), 128))
        w.fault("the tensor map is uninitialised", lane);
    shared_read(w, lane, static_cast<uint32_t>(from), 128);
    for (uint64_t i = 0; i < 128; i += 16)
        std::memcpy(global_write(w, lane, to + i, 16), w.block->shared.data() + from + i, 16);
    return Step::kNext;
}

Step nothing(Warp&, Group&, const Instruction&, uint32_t) { return Step::kNext; }

bool bind_tensormap(Modifiers& left, Instruction& in) {
    if (left.take("cp_fenceproxy")) {
        in.aligned = true;
        in.handler = publish;
        return left.take("global") && left.take("shared::cta") && in.count == 3;
    }
    in.mode[0] = left.take_one_of({"global_address", "rank", "box_dim", "global_dim",
                                   "global_stride", "element_stride", "elemtype",
                                   "interleave_layout", "swizzle_mode", "fill_mode"});
    in.handler = replace;
    bool indexed = in.mode[0] >= kBox && in.mode[0] <= kStep;
    return left.take("replace") && left.take("tile") && in.mode[0] >= 0 &&
           left.take("shared::cta") && left.take("b1024") &&
           left.take_one_of({"b32", "b64"}) >= 0 && left.none_left() && in.count == 2 + indexed;
}

}  // namespace

bool bind_bulk(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    in.kind = Class::kAsync;
    if (op.base == "tensormap") return bind_tensormap(left, in);
    if (op.base != "cp" || !left.take("async") || !left.take("bulk")) return false;
    if (left.take("prefetch")) return in.handler = nothing, true;
    if (left.take("commit_group")) return in.handler = commit, left.none_left() && !in.count;
    if (left.take("wait_group")) {
        left.take("read");
        in.handler = wait;
        return left.none_left() && in.count == 1;
    }
    in.mode[0] = left.take("bulk_group");
    bool policy = left.take("L2::cache_hint");
    if (!in.mode[0] && !left.take("mbarrier::complete_tx::bytes")) return false;
    if (!left.take("global") || left.take_one_of({"shared::cta", "shared::cluster"}) < 0)
        return false;
    if (!left.take("tensor")) {
        in.handler = linear;
        return left.none_left() && in.count == (in.mode[0] ? 3 : 4) + policy;
    }
    in.mode[1] = 1 + left.take_one_of({"1d", "2d", "3d", "4d", "5d"});
    left.take("tile");
    in.handler = tensor;
    return in.mode[1] && left.none_left() && in.count == in.mode[1] + (in.mode[0] ? 2 : 3) + policy;
}

}  // namespace emu
