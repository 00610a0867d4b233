// cp.async: copies from global to shared memory that land when their group is waited for, and not
// before.
//
//   issue           destination poisoned, bytes kept aside
//   commit_group    closes the lane's open group
//   wait_group n    all but the newest n groups of the lane land: bytes written, poison gone
//
// So a missing wait reads poison, and a copy into a buffer that another warp may still be reading
// is a race at issue.
#include <algorithm>
#include <bit>

#include "machine.h"
#include "modifiers.h"

namespace emu {

void count_phase(const uint32_t* at, int n, uint32_t size, uint64_t& wavefronts, uint64_t& ideal);
void count_shared(const uint32_t* at, uint32_t mask, uint32_t size, uint64_t& wavefronts,
                  uint64_t& ideal);

static void land(Warp& w, int lane, const std::vector<PendingCopy>& copies) {
    for (const PendingCopy& c : copies) {
        shared_write(w, lane, c.address, c.size);
        std::memcpy(w.block->shared.data() + c.address, c.data, c.size);
        std::memset(w.block->poison.data() + c.address, 0, c.size);
    }
}

static void land_groups(Warp& w, int lane, size_t keep) {
    auto& sent = w.copies[lane].sent;
    while (sent.size() > keep) {
        land(w, lane, sent.front());
        sent.erase(sent.begin());
    }
}

void land_all(Warp& w, int lane) {
    land_groups(w, lane, 0);
    land(w, lane, w.copies[lane].open);
    w.copies[lane].open.clear();
}

namespace {

// cp.async.{ca,cg}.shared.global [dst], [src], cp-size{, src-size | ignore-src}{, cache-policy}
// mode: whole, without a source size
Step copy(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    const Operand &to = in.ops[0], &from = in.ops[1];
    auto size = static_cast<uint32_t>(lane_bits(w, in.ops[2], 0));
    if (size != 4 && size != 8 && size != 16)
        w.fault("cp.async of " + std::to_string(size) + " bytes: 4, 8 or 16");
    const Operand* length = in.mode[0] ? nullptr : &in.ops[3];
    uint32_t bad = poisoned(w, to) | poisoned(w, from) | (length ? poisoned(w, *length) : 0);
    if (bad & mask) w.fault("address or size is uninitialised", std::countr_zero(bad & mask));
    uint32_t shared[32];
    uint64_t sectors[64];
    int count = 0;
    Buffer* buffer = nullptr;
    for (int l = 0; l < 32; ++l) {
        if (!(mask >> l & 1)) continue;
        uint64_t at = address(w, to, l), source_at = address(w, from, l);
        uint32_t bytes = size;
        if (length) {
            bool ignore = length->bits == 1;
            bytes = ignore ? (lane_bits(w, *length, l) ? 0 : size)
                           : static_cast<uint32_t>(lane_bits(w, *length, l));
            if (bytes > size) w.fault("src-size " + std::to_string(bytes) + " exceeds cp-size", l);
        }
        check_shared(w, l, at, size, size);
        PendingCopy c{static_cast<uint32_t>(at), size, {}};
        if (bytes) {
            check_aligned(w, l, source_at, size);
            uint32_t step = bytes == size ? size : 1;  // an odd number of bytes: each by itself
            for (uint32_t i = 0; i < bytes; i += step) {
                uint64_t unwritten;
                std::memcpy(c.data + i, global_read(w, l, source_at + i, step, &unwritten), step);
                if (unwritten) w.fault("uninitialised global memory is copied", l);
            }
            buffer = w.machine->find(source_at);
            for (uint64_t s = source_at / 32; s <= (source_at + bytes - 1) / 32; ++s)
                sectors[count++] = s;
            for (uint64_t i = source_at - buffer->base; i < source_at - buffer->base + bytes; ++i)
                buffer->touched[0][i / 64] |= 1ull << (i % 64);
            buffer->asked[0] += bytes;
        }
        shared_write(w, l, static_cast<uint32_t>(at), size);
        std::memset(w.block->poison.data() + at, 1, size);
        shared[l] = static_cast<uint32_t>(at);
        w.copies[l].open.push_back(c);
    }
    Counters& c = w.machine->counters;
    count_shared(shared, mask, size, c.async_wavefronts, c.async_ideal);
    if (buffer) {
        std::sort(sectors, sectors + count);
        count = static_cast<int>(std::unique(sectors, sectors + count) - sectors);
        buffer->sectors[0] += count;
        for (int i = 0; i < count; ++i) sectors[i] /= 4;
        buffer->lines[0] += std::unique(sectors, sectors + count) - sectors;
        buffer->requests[0]++;
    }
    return Step::kNext;
}

Step commit(Warp& w, Group&, const Instruction&, uint32_t mask) {
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) {
            w.copies[l].sent.push_back(std::move(w.copies[l].open));
            w.copies[l].open.clear();
        }
    return Step::kNext;
}

// cp.async.mbarrier.arrive{.noinc}: the lane arrives once its copies have landed. mode: noinc
Step arrive(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) {
            Mbarrier& bar = mbarrier_at(w, l, address(w, in.ops[0], l));
            bar.pending += !in.mode[0];
            bar.deferred.push_back({static_cast<uint8_t>(w.index), static_cast<uint8_t>(l)});
        }
    return Step::kNext;
}

// mode: wait for all, the open group too
Step wait(Warp& w, Group&, const Instruction& in, uint32_t mask) {
    size_t keep = in.mode[0] ? 0 : lane_bits(w, in.ops[0], 0);
    for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) {
            if (in.mode[0])
                land_all(w, l);
            else
                land_groups(w, l, keep);
        }
    return Step::kNext;
}

}  // namespace

bool bind_async(const Opcode& op, Instruction& in) {
    Modifiers left(op);
    if (op.base != "cp" || !left.take("async") || left.take("bulk")) return false;
    in.kind = Class::kAsync;
    if (left.take("mbarrier")) {
        in.mode[0] = left.take("noinc");
        in.handler = arrive;
        left.take_one_of({"shared", "shared::cta"});
        return left.take("arrive") && left.take("b64") && left.none_left() && in.count == 1;
    }
    if (left.take("commit_group")) return in.handler = commit, left.none_left() && !in.count;
    int waiting = left.take_one_of({"wait_group", "wait_all"});
    if (waiting >= 0) {
        in.mode[0] = waiting;
        in.handler = wait;
        return left.none_left() && in.count == 1 - waiting;
    }
    in.handler = copy;
    bool policy = left.take("L2::cache_hint");
    left.take_beginning("L2::");
    if (left.take_one_of({"ca", "cg"}) < 0 || !left.take("global")) return false;
    left.take_one_of({"shared", "shared::cta"});
    in.mode[0] = in.count == 3 + policy;  // without a source size
    return left.none_left() && (in.mode[0] || in.count == 4 + policy);
}

}  // namespace emu
