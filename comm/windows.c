#include "comm/windows.h"

void mla_windows_choose(const uint64_t plain_ns[MLA_WINDOWS_SIZES],
                        const uint64_t windows_ns[MLA_WINDOWS_SIZES], struct mla_windows *out)
{
    for (uint32_t i = 0; i < MLA_WINDOWS_SIZES; i++)
        out->faster[i] = windows_ns[i] < plain_ns[i] - plain_ns[i] / 50;
}

bool mla_windows_are_right(int nccl_version, size_t bytes)
{
    return nccl_version >= 23007 && bytes % 8 == 0;
}

bool mla_windows_are_faster(const struct mla_windows *windows, size_t bytes)
{
    uint32_t i = 0;
    /* Up to the geometric mean of two sizes the smaller one is nearer: 181 / 128 is sqrt(2). */
    while (i + 1 < MLA_WINDOWS_SIZES && bytes > mla_windows_bytes(i) / 128 * 181)
        i++;
    return windows->faster[i];
}
