/* Where NCCL's windows are used, from times. */
#include "comm/windows.h"

#include <criterion/criterion.h>

static struct mla_windows windows;

Test(windows, what_is_faster_by_two_percent)
{
    uint64_t plain[MLA_WINDOWS_SIZES], with[MLA_WINDOWS_SIZES];
    for (uint32_t i = 0; i < MLA_WINDOWS_SIZES; i++) {
        plain[i] = 10000;
        with[i] = 9700 + 100ull * i;
    }
    mla_windows_choose(plain, with, &windows);
    cr_expect(windows.faster[0]);  /* 9700 */
    cr_expect(!windows.faster[1]); /* 9800: no more than 2 % */
    cr_expect(!windows.faster[3]); /* the same */
    cr_expect(!windows.faster[MLA_WINDOWS_SIZES - 1]);
    plain[0] = with[0] = 0; /* not measured */
    mla_windows_choose(plain, with, &windows);
    cr_expect(!windows.faster[0]);
}

Test(windows, not_where_nccl_is_wrong)
{
    cr_expect(!mla_windows_are_right(22803, 4096));
    cr_expect(!mla_windows_are_right(23004, 4096));
    cr_expect(mla_windows_are_right(23007, 4096));
    cr_expect(!mla_windows_are_right(23007, 2002));
}

Test(windows, the_nearest_size_decides)
{
    for (uint32_t size = 0; size < MLA_WINDOWS_SIZES; size++) {
        windows = (struct mla_windows){0};
        windows.faster[size] = true;
        size_t bytes = mla_windows_bytes(size);
        cr_expect(mla_windows_are_faster(&windows, bytes));
        cr_expect(mla_windows_are_faster(&windows, bytes / 10 * 8) || size == 0);
        cr_expect(mla_windows_are_faster(&windows, bytes / 10 * 14));
        bool least = size == 0, most = size == MLA_WINDOWS_SIZES - 1;
        cr_expect_eq(mla_windows_are_faster(&windows, bytes / 10 * 6), least);
        cr_expect_eq(mla_windows_are_faster(&windows, bytes / 10 * 15), most);
        cr_expect_eq(mla_windows_are_faster(&windows, 0), least);
        cr_expect_eq(mla_windows_are_faster(&windows, SIZE_MAX / 2), most);
    }
}

/* Microseconds on 4 GPUs (rows 1, 16, 128, 256, 512 of V3's layer), plain and with windows. */
Test(windows, of_a_real_table)
{
    static const size_t rows[] = {1, 4, 32, 64, 128}; /* a rank's */
    static const double gather[][2] = {
        {9.6, 3.9}, {9.7, 4.5}, {10.1, 7.7}, {12.5, 9.0}, {18.2, 11.6}};
    static const double sum[][2] = {
        {8.1, 4.7}, {7.9, 14.6}, {15.3, 18.1}, {31.7, 21.6}, {36.5, 36.5}};
    static const bool sum_wanted[] = {true, false, false, true, false};
    uint64_t plain[2][MLA_WINDOWS_SIZES] = {{0}}, with[2][MLA_WINDOWS_SIZES] = {{0}};
    struct mla_windows gathered, summed;
    /* 4224 bytes are nearest to size 4, 14336 to size 6; each further row of the table is as many
     * sizes on as its rows are doublings. */
    static const uint32_t doublings[] = {0, 2, 5, 6, 7};
    for (int i = 0; i < 5; i++) {
        plain[0][4 + doublings[i]] = (uint64_t)(gather[i][0] * 1e3);
        with[0][4 + doublings[i]] = (uint64_t)(gather[i][1] * 1e3);
        plain[1][6 + doublings[i]] = (uint64_t)(sum[i][0] * 1e3);
        with[1][6 + doublings[i]] = (uint64_t)(sum[i][1] * 1e3);
    }
    mla_windows_choose(plain[0], with[0], &gathered);
    mla_windows_choose(plain[1], with[1], &summed);
    for (int i = 0; i < 5; i++) {
        cr_expect(mla_windows_are_faster(&gathered, rows[i] * 2112 * 2), "all-gather %d", i);
        cr_expect_eq(mla_windows_are_faster(&summed, rows[i] * 7168 * 2), sum_wanted[i],
                     "reduce-scatter %d", i);
    }
}
