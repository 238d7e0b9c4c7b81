/* Criterion's tests are processes that share memory at an address that it draws with rand_r, ten
 * times at most: 2^45 + r 2^24. Most addresses are the thread sanitizer's. Linked into its builds:
 * those that are drawn lie where a program may have memory, from 0x5500 to 0x5680 << 32. */
#include <stdlib.h>

int rand_r(unsigned *seed)
{
    *seed = *seed * 1103515245u + 12345u;
    return (int)(0x350000u + (*seed >> 8) % 0x18000u);
}
