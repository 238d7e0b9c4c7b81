#include "tests/lib/alone.h"

static enum mla_status gather(struct mla_collective *collective, void *data, size_t count)
{
    (void)collective;
    (void)data;
    (void)count;
    return MLA_OK;
}

/* This rank's part is the first. */
static enum mla_status reduce(struct mla_collective *collective, void *data, size_t count,
                              void **part)
{
    (void)collective;
    (void)count;
    *part = data;
    return MLA_OK;
}

static enum mla_status alloc(struct mla_collective *collective, size_t bytes, void **out)
{
    struct mla_backend *backend = ((struct mla_alone *)(void *)collective)->backend;
    return backend->ops->alloc(backend, bytes, out);
}

static void release(struct mla_collective *collective, void *memory)
{
    struct mla_backend *backend = ((struct mla_alone *)(void *)collective)->backend;
    backend->ops->free(backend, memory);
}

void mla_alone_init(struct mla_alone *alone, struct mla_backend *backend, uint32_t ranks)
{
    static const struct mla_collective_ops ops = {.name = "alone",
                                                  .all_gather = gather,
                                                  .reduce_scatter = reduce,
                                                  .alloc = alloc,
                                                  .free = release};
    *alone = (struct mla_alone){{.ops = &ops, .ranks = ranks}, backend};
}
