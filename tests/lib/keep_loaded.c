/* Libraries stay loaded until the end, so that a leak report can name the one that leaked. Open
 * MPI unloads its plugins before. Linked into sanitized workers only. */
#include <dlfcn.h>

int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
