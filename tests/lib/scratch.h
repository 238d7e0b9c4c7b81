/* Temporary folders of tests. */
#ifndef MLA_TESTS_LIB_SCRATCH_H
#define MLA_TESTS_LIB_SCRATCH_H

#include <ftw.h>
#include <stdio.h>

static inline int mla_scratch_remove_one(const char *path, const struct stat *info, int type,
                                         struct FTW *place)
{
    (void)info;
    (void)type;
    (void)place;
    return remove(path);
}

/* The folder and all that is in it; 0, or -1 with errno. */
static inline int mla_scratch_remove(const char *folder)
{
    return nftw(folder, mla_scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
