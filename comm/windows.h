/* Which way of a collective is faster: memory as it is, or windows of NCCL's symmetric memory.
 * Neither is at all sizes, and where they cross depends on ranks and links: it is measured at sizes
 * that are powers of two, and the nearest one decides. */
#ifndef MLA_COMM_WINDOWS_H
#define MLA_COMM_WINDOWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MLA_WINDOWS_BYTES_MIN = 256, /* of a rank's part */
    MLA_WINDOWS_SIZES = 16,      /* up to 8 MiB */
};

struct mla_windows {
    bool faster[MLA_WINDOWS_SIZES];
};

/* Bytes of a rank's part that stand for size i. */
static inline size_t mla_windows_bytes(uint32_t i)
{
    return (size_t)MLA_WINDOWS_BYTES_MIN << i;
}

/* The times of each size without windows and with them, the same on all ranks. Windows have to gain
 * 2 % at least: less may be chance, and what needs no windows has been used for longer. */
void mla_windows_choose(const uint64_t plain_ns[MLA_WINDOWS_SIZES],
                        const uint64_t windows_ns[MLA_WINDOWS_SIZES], struct mla_windows *out);

/* Whether NCCL of this version (2.28.3 is 22803) gives right results with windows, for parts of so
 * many bytes. Kernels for windows are launched so that they may start before the kernel in front
 * has ended (programmatic stream serialization), but only from 2.30.7 on they wait for that: until
 * then they read what kernels like ours, which let the next one in early, have yet to write. Parts
 * that are no multiples of 8 bytes are gathered wrongly by 2.28.3 and 2.28.9. */
bool mla_windows_are_right(int nccl_version, size_t bytes);

/* Whether windows are faster for parts of so many bytes. */
bool mla_windows_are_faster(const struct mla_windows *windows, size_t bytes);

#endif
