#include "proto/limits.h"
#include "worker/safetensors.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char why[MLA_SENTENCE_BYTES_MAX];

/* Parses a file image of exactly this header and so many bytes of data. The image is on the heap
 * and as long as it should be, so that a sanitizer sees any read past it. */
static enum mla_status parse(const char *header, size_t data_bytes, struct mla_safetensors *out,
                             uint8_t **image)
{
    uint64_t length = strlen(header);
    *image = malloc(8 + length + data_bytes);
    memcpy(*image, &length, 8);
    memcpy(*image + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++)
        (*image)[8 + length + i] = (uint8_t)i;
    *why = '\0';
    return mla_safetensors_parse(*image, 8 + length + data_bytes, out, why);
}

Test(safetensors, valid)
{
    struct mla_safetensors file;
    uint8_t *image;
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[6,30]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"
        "\"none\":{\"dtype\":\"F16\",\"shape\":[4,0],\"data_offsets\":[6,6]},"
        "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[30,38]},"
        "\"packed\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[38,41]}}  ";
    cr_assert_eq(parse(header, 41, &file, &image), MLA_OK, "%s", why);
    const uint8_t *data = image + 8 + strlen(header);
    cr_assert_eq(file.count, 5);
    const struct mla_tensor *a = mla_safetensors_find(&file, "a");
    const struct mla_tensor *b = mla_safetensors_find(&file, "b");
    const struct mla_tensor *none = mla_safetensors_find(&file, "none");
    const struct mla_tensor *scalar = mla_safetensors_find(&file, "scalar");
    const struct mla_tensor *packed = mla_safetensors_find(&file, "packed");
    cr_assert(a && b && none && scalar && packed);
    cr_expect_null(mla_safetensors_find(&file, "__metadata__"));
    cr_expect_null(mla_safetensors_find(&file, "c"));
    cr_expect(a->dtype == MLA_BF16 && a->dims == 1 && a->shape[0] == 3 && a->bytes == 6);
    cr_expect(b->dtype == MLA_F32 && b->dims == 2 && b->shape[0] == 2 && b->shape[1] == 3);
    cr_expect(a->data == data && b->data == data + 6 && b->bytes == 24);
    cr_expect(none->dtype == MLA_F16 && none->bytes == 0);
    cr_expect(scalar->dtype == 0 && scalar->dims == 0 && scalar->bytes == 8);
    cr_expect(packed->dtype == 0 && packed->bytes == 3);
    for (size_t i = 1; i < file.count; i++)
        cr_expect_lt(strcmp(file.tensors[i - 1].name, file.tensors[i].name), 0);
    mla_safetensors_close(&file);
    mla_safetensors_close(&file);
    free(image);
}

Test(safetensors, empty)
{
    struct mla_safetensors file;
    uint8_t *image;
    cr_assert_eq(parse("{}", 0, &file, &image), MLA_OK, "%s", why);
    cr_expect_eq(file.count, 0);
    cr_expect_null(mla_safetensors_find(&file, "a"));
    mla_safetensors_close(&file);
    free(image);
}

#define TENSOR(dtype, shape, offsets)                                                              \
    "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second)                                                                         \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first "},"                          \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

/* Each broken in one way, with what the sentence must say. */
static const struct {
    const char *header;
    size_t data_bytes;
    const char *sentence;
} broken[] = {
    {"", 0, "'{'"},
    {" {}", 0, "'{'"},
    {"[]", 0, "'{'"},
    {"{", 0, "header, line 1"},
    {"{} x", 0, "header, line 1"},
    {"{}", 1, "1 bytes at the end belong to no tensor"},
    {"{\"a\":{},\"a\":{}}", 0, "duplicate"},
    {"{\"__metadata__\":3}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":3}}", 0, "__metadata__"},
    {"{\"a\":3}", 0, "tensor a is not an object"},
    {"{\"a\":{}}", 0, "tensor a has no dtype"},
    {"{\"a\\nb\\u001b\":{}}", 0, "tensor a?b? has no dtype"},
    {TENSOR("3", "[4]", "[0,4]"), 4, "no dtype"},
    {TENSOR("\"u8\"", "[4]", "[0,4]"), 4, "unknown dtype u8"},
    {TENSOR("\"U8\"", "4", "[0,4]"), 4, "shape of tensor a"},
    {TENSOR("\"U8\"", "null", "[0,4]"), 4, "shape of tensor a"},
    {TENSOR("\"U8\"", "[1,1,1,1,1,1,1,1,4]", "[0,4]"), 4, "list of 0 to 8"},
    {TENSOR("\"U8\"", "[-4]", "[0,4]"), 4, "dimension 0"},
    {TENSOR("\"U8\"", "[4,1.0]", "[0,4]"), 4, "dimension 1"},
    {TENSOR("\"U8\"", "[\"4\"]", "[0,4]"), 4, "dimension 0"},
    {TENSOR("\"F32\"", "[4611686018427387905]", "[0,4]"), 4, "no size in bytes"},
    {TENSOR("\"U8\"", "[4294967296,4294967297]", "[0,4]"), 4, "no size in bytes"},
    {TENSOR("\"U8\"", "[4294967296,4294967296,0]", "[0,0]"), 0, "no size in bytes"},
    {TENSOR("\"F4\"", "[7]", "[0,3]"), 3, "no size in bytes"},
    {TENSOR("\"U8\"", "[99999999999999999999]", "[0,4]"), 4, "header, line 1"},
    {TENSOR("\"U8\"", "[4]", "[0]"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[0,4,4]"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[4]", "{\"0\":0,\"1\":4}"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[-4,0]"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[4,0]"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[4]", "[0,4.0]"), 4, "data_offsets"},
    {TENSOR("\"U8\"", "[5]", "[0,5]"), 4, "ends at byte 5 of the data, which has 4"},
    {TENSOR("\"U8\"", "[4]", "[9223372036854775803,9223372036854775807]"), 4, "ends at byte"},
    {TENSOR("\"U8\"", "[3]", "[0,4]"), 4, "has 4 bytes of data, its shape asks for 3"},
    {TENSOR("\"F32\"", "[4]", "[0,4]"), 4, "has 4 bytes of data, its shape asks for 16"},
    {TENSOR("\"U8\"", "[3]", "[1,4]"), 4, "after a gap"},
    {TENSOR("\"U8\"", "[3]", "[0,3]"), 4, "1 bytes at the end belong to no tensor"},
    {TWO("[0,4]", "[0,4]"), 4, "overlaps"},
    {TWO("[0,4]", "[3,7]"), 7, "overlaps"},
    {TWO("[5,9]", "[0,4]"), 9, "tensor a comes after a gap"},
};

Test(safetensors, broken)
{
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        struct mla_safetensors file = {.count = 12345};
        uint8_t *image;
        cr_expect_eq(parse(broken[i].header, broken[i].data_bytes, &file, &image), MLA_CHECKPOINT,
                     "%s", broken[i].header);
        cr_expect(strstr(why, broken[i].sentence), "%s: expected \"%s\", got \"%s\"",
                  broken[i].header, broken[i].sentence, why);
        cr_expect_eq(file.count, 12345, "a refused file changed the result");
        free(image);
    }
}

/* The length before the header is anybody's number. */
Test(safetensors, broken_lengths)
{
    static const uint64_t lengths[] = {
        3,         8, MLA_SAFETENSORS_HEADER_MAX, MLA_SAFETENSORS_HEADER_MAX + 1, UINT64_MAX - 7,
        UINT64_MAX};
    struct mla_safetensors file;
    uint8_t *image = malloc(10);
    image[8] = '{';
    image[9] = '}';
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memcpy(image, &lengths[i], 8);
        cr_expect_eq(mla_safetensors_parse(image, 10, &file, why), MLA_CHECKPOINT);
        cr_expect(strstr(why, "a header of"), "%s", why);
    }
    free(image);
    /* as long as it says, but too long */
    const uint64_t length = MLA_SAFETENSORS_HEADER_MAX + 1;
    image = calloc(1, 8 + length);
    memcpy(image, &length, sizeof length);
    cr_expect_eq(mla_safetensors_parse(image, 8 + length, &file, why), MLA_CHECKPOINT);
    cr_expect(strstr(why, "a header of 67108865"), "%s", why);
    free(image);
    for (size_t bytes = 0; bytes < 8; bytes++) {
        image = calloc(1, bytes + 1);
        cr_expect_eq(mla_safetensors_parse(image, bytes, &file, why), MLA_CHECKPOINT);
        free(image);
    }
}

/* Wherever a good file is cut off, it is refused. */
Test(safetensors, every_cut)
{
    const char *header = TWO("[0,4]", "[4,8]");
    struct mla_safetensors file;
    uint8_t *image;
    cr_assert_eq(parse(header, 8, &file, &image), MLA_OK, "%s", why);
    mla_safetensors_close(&file);
    for (size_t bytes = 0; bytes < 8 + strlen(header) + 8; bytes++) {
        uint8_t *cut = malloc(bytes + 1);
        memcpy(cut, image, bytes);
        cr_expect_eq(mla_safetensors_parse(cut, bytes, &file, why), MLA_CHECKPOINT, "%zu", bytes);
        free(cut);
    }
    free(image);
}

static enum mla_status fill(void *context, size_t index, void *file)
{
    static const float values[] = {1, 2, 3, 4, 5, 6};
    static const uint16_t halves[] = {0x3f80, 0x4000};
    (*(size_t *)context)++;
    if (index == 0)
        return fwrite(values, sizeof values, 1, file) == 1 ? MLA_OK : MLA_SYSTEM;
    if (index == 1)
        return fwrite(halves, sizeof halves, 1, file) == 1 ? MLA_OK : MLA_SYSTEM;
    return MLA_UNSUPPORTED;
}

static const struct mla_safetensors_entry entries[] = {
    {.name = "z", .dtype = MLA_F32, .dims = 2, .shape = {2, 3}},
    {.name = "a\"b", .dtype = MLA_BF16, .dims = 1, .shape = {2}},
    {.name = "never", .dtype = MLA_F16, .dims = 1, .shape = {2}},
};

Test(safetensors, write_and_open)
{
    char folder[] = "/tmp/mla-test-safetensors-XXXXXX", path[64];
    struct mla_safetensors file;
    size_t calls = 0;
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/t", folder);
    cr_assert_eq(mla_safetensors_write(path, entries, 2, fill, &calls), MLA_OK);
    cr_expect_eq(calls, 2);
    cr_assert_eq(mla_safetensors_open(path, &file, why), MLA_OK, "%s", why);
    cr_expect_eq(file.count, 2);
    const struct mla_tensor *z = mla_safetensors_find(&file, "z");
    const struct mla_tensor *ab = mla_safetensors_find(&file, "a\"b");
    cr_assert(z && ab);
    cr_expect(z->dims == 2 && z->shape[0] == 2 && z->shape[1] == 3 && z->dtype == MLA_F32);
    cr_expect_eq((uintptr_t)z->data % 8, 0, "the data are not aligned");
    float six;
    memcpy(&six, z->data + 20, sizeof six);
    cr_expect_eq(six, 6);
    cr_expect(ab->dtype == MLA_BF16 && ab->bytes == 4 && ab->data == z->data + 24);
    mla_safetensors_close(&file);

    cr_assert_eq(truncate(path, 20), 0);
    cr_expect_eq(mla_safetensors_open(path, &file, why), MLA_CHECKPOINT);
    cr_expect(strncmp(why, "t: ", 3) == 0, "the sentence names the file: %s", why);
    cr_assert_eq(truncate(path, 0), 0);
    cr_expect_eq(mla_safetensors_open(path, &file, why), MLA_CHECKPOINT);
    unlink(path);
    cr_expect_eq(mla_safetensors_open(path, &file, why), MLA_SYSTEM);
    cr_expect_eq(mla_safetensors_open(folder, &file, why), MLA_CHECKPOINT);
    rmdir(folder);
}

/* What fill says is passed on, and no half file stays behind. */
Test(safetensors, write_fails)
{
    char folder[] = "/tmp/mla-test-safetensors-XXXXXX", path[64];
    size_t calls = 0;
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/t", folder);
    cr_expect_eq(mla_safetensors_write(path, entries, 3, fill, &calls), MLA_UNSUPPORTED);
    cr_expect_neq(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/missing/t", folder);
    errno = 0;
    cr_expect_eq(mla_safetensors_write(path, entries, 2, fill, &calls), MLA_SYSTEM);
    cr_expect_eq(errno, ENOENT);
    rmdir(folder);
}
