// What training does with canonical 2:4 tensors at every step, by moving bits, whatever the dtype.
//
//   decompress   values, meta -> W [N][K]           dL/dx = dL/dy W where W^T is not 2:4
//   take         dense [N][K], meta -> values       dL/dW at the kept positions
//   transpose    values, meta -> those of W^T       dL/dx by the kernel of the product where it is
//
// W^T is 2:4 if each block of 4 x 4 keeps at most two a row and two a column:
//
//   rows 4b..4b+3 of W, group g        rows 4g..4g+3 of W^T, group b
//      a b . .                            a . d .        free slots of a pair: +0 at the lowest
//      . . c .                 ->         b . . f        position that is left, as compress fills
//      d . . e                            . c . .        them
//      . f . .                            . . e .
//
// Limit: one pass over both forms, memory.
#include <atomic>
#include <cstring>

#include "../kernels.h"
#include "../sparse24.h"

namespace prunekern {
namespace {

using namespace sparse24_format;

constexpr int64_t kGroupsAtOnce = 16;  // 128 bytes of a row of fp32 values: two cache lines

struct Sizes {
    int64_t N, K, G, meta_bytes;
    explicit Sizes(const Sparse24Convert& c)
        : N(c.N), K(c.K), G((c.K + 3) / 4), meta_bytes((G + 1) / 2) {}
};

template <class T>
void decompress_rows(const Sparse24Convert& c, int64_t begin, int64_t end) {
    const Sizes s(c);
    for (int64_t n = begin; n < end; ++n) {
        const T* values = static_cast<const T*>(c.values) + n * 2 * s.G;
        const uint8_t* meta = c.meta + n * s.meta_bytes;
        T* dense = static_cast<T*>(c.dense) + n * s.K;
        std::memset(dense, 0, s.K * sizeof(T));
        for (int64_t g = 0; g < s.G; ++g) {
            const uint32_t nibble = nibble_at(meta, g);
            const int64_t first = 4 * g + first_position(nibble);
            const int64_t second = 4 * g + second_position(nibble);
            if (first < s.K) dense[first] = values[2 * g];
            if (second < s.K) dense[second] = values[2 * g + 1];
        }
    }
}

template <class T>
void take_rows(const Sparse24Convert& c, int64_t begin, int64_t end) {
    const Sizes s(c);
    for (int64_t n = begin; n < end; ++n) {
        const T* dense = static_cast<const T*>(c.dense) + n * s.K;
        const uint8_t* meta = c.meta + n * s.meta_bytes;
        T* values = static_cast<T*>(c.values) + n * 2 * s.G;
        for (int64_t g = 0; g < s.G; ++g) {
            const uint32_t nibble = nibble_at(meta, g);
            const int64_t first = 4 * g + first_position(nibble);
            const int64_t second = 4 * g + second_position(nibble);
            values[2 * g] = first < s.K ? dense[first] : T{0};
            values[2 * g + 1] = second < s.K ? dense[second] : T{0};
        }
    }
}

// A pair of W^T that is being filled; rows of a block arrive in ascending order.
template <class T>
struct Pair {
    T values[2] = {0, 0};
    uint32_t positions[2] = {0, 0};
    int count = 0;

    void add(T value, uint32_t row) {
        if (count < 2) {
            values[count] = value;
            positions[count] = row;
        }
        ++count;
    }
    // Free slots take +0 and the lowest positions that are left.
    uint32_t close() {
        if (count == 0) return kEmptyNibble;
        if (count >= 2) return encode(positions[0], positions[1]);
        if (positions[0] != 0) {
            values[1] = values[0];
            values[0] = T{0};
            return encode(0, positions[0]);
        }
        return encode(0, 1);
    }
};

// Groups [begin, end) of W, which become rows 4 begin .. 4 end of W^T. Returns how many of their
// groups keep more than two.
template <class T>
int64_t transpose_groups(const Sparse24Convert& c, int64_t begin, int64_t end) {
    const Sizes s(c);
    const int64_t blocks = (s.N + 3) / 4, out_meta_bytes = (blocks + 1) / 2;
    int64_t broken = 0;
    for (int64_t b = 0; b < 2 * out_meta_bytes; ++b) {
        for (int64_t g = begin; g < end; ++g) {
            Pair<T> pairs[4];
            for (int64_t i = 0; i < 4 && 4 * b + i < s.N; ++i) {
                const int64_t n = 4 * b + i;
                const T* values = static_cast<const T*>(c.values) + n * 2 * s.G + 2 * g;
                const uint32_t nibble = nibble_at(c.meta + n * s.meta_bytes, g);
                pairs[first_position(nibble)].add(values[0], static_cast<uint32_t>(i));
                pairs[second_position(nibble)].add(values[1], static_cast<uint32_t>(i));
            }
            for (int64_t j = 0; j < 4 && 4 * g + j < s.K; ++j) {
                const int64_t k = 4 * g + j;
                const uint32_t nibble = pairs[j].close();
                uint8_t& byte = c.transposed_meta[k * out_meta_bytes + b / 2];
                byte = b % 2 ? byte | nibble << 4 : nibble;
                if (b == blocks) continue;  // the unused nibble at the end of a row
                T* out = static_cast<T*>(c.transposed_values) + (k * blocks + b) * 2;
                out[0] = pairs[j].values[0];
                out[1] = pairs[j].values[1];
                broken += pairs[j].count > 2;
            }
        }
    }
    return broken;
}

template <void (*Wide)(const Sparse24Convert&, int64_t, int64_t),
          void (*Narrow)(const Sparse24Convert&, int64_t, int64_t)>
void over_rows(const Sparse24Convert& c) {
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        const auto& c = *static_cast<const Sparse24Convert*>(ctx);
        (c.element_bytes == 4 ? Wide : Narrow)(c, begin, end);
    };
    c.parallel_for(c.N, 16, body, const_cast<Sparse24Convert*>(&c));
}

}  // namespace

void sparse24_decompress(const Sparse24Convert& c) {
    over_rows<decompress_rows<uint32_t>, decompress_rows<uint16_t>>(c);
}

void sparse24_take(const Sparse24Convert& c) {
    over_rows<take_rows<uint32_t>, take_rows<uint16_t>>(c);
}

int64_t sparse24_transpose(const Sparse24Convert& c) {
    struct Work {
        const Sparse24Convert& c;
        int64_t groups;
        std::atomic<int64_t> broken{0};
    } work{c, (c.K + 3) / 4};
    const auto body = [](void* ctx, int64_t begin, int64_t end) {
        auto& work = *static_cast<Work*>(ctx);
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * kGroupsAtOnce;
            const int64_t last =
                first + kGroupsAtOnce < work.groups ? first + kGroupsAtOnce : work.groups;
            work.broken += work.c.element_bytes == 4
                               ? transpose_groups<uint32_t>(work.c, first, last)
                               : transpose_groups<uint16_t>(work.c, first, last);
        }
    };
    c.parallel_for((work.groups + kGroupsAtOnce - 1) / kGroupsAtOnce, 1, body, &work);
    return work.broken;
}

}  // namespace prunekern
