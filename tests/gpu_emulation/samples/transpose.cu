// out[c][r] = in[r][c] by tiles of 32 x 32, with and without a column of padding in shared memory.
//
//   in                         tile, a word a bank                         out
//   row r ──store a row──▶   | 0 1 2 .. 31 |                    ──▶  column r
//                            | 0 1 2 .. 31 | ◀─ load a column: all 32 lanes in one bank;
//   with a 33rd word a row:  | 1 2 .. 31 0 |    with padding in 32
//
// A block of 32 x 8 threads moves four rows a thread.

constexpr int kTile = 32, kRows = 8;

template <int kPad>
__device__ void transpose(int rows, int columns, const float* in, float* out) {
    __shared__ float tile[kTile][kTile + kPad];
    const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
    for (int i = threadIdx.y; i < kTile; i += kRows)
        if (row + i < rows && column + threadIdx.x < columns)
            tile[i][threadIdx.x] =
                in[static_cast<size_t>(row + i) * columns + column + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < kTile; i += kRows)
        if (column + i < columns && row + threadIdx.x < rows)
            out[static_cast<size_t>(column + i) * rows + row + threadIdx.x] = tile[threadIdx.x][i];
}

extern "C" __global__ void transpose_plain(int rows, int columns, const float* in, float* out) {
    transpose<0>(rows, columns, in, out);
}

extern "C" __global__ void transpose_padded(int rows, int columns, const float* in, float* out) {
    transpose<1>(rows, columns, in, out);
}
