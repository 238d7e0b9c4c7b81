/* Command lines. */
#ifndef MLA_PROTO_PARSE_H
#define MLA_PROTO_PARSE_H

#include "proto/status.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

/* A whole decimal number from least to most, and nothing else. */
bool mla_parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *out);
bool mla_parse_u32(const char *text, uint32_t least, uint32_t most, uint32_t *out);
/* A number of bytes with an optional K, M, G or T (powers of 1024). */
bool mla_parse_bytes(const char *text, uint64_t *out);
/* "1,2,8": ascending numbers, at least one, at most `capacity`. `list` may be written to even when
 * that fails. */
bool mla_parse_list(const char *text, uint32_t capacity, uint32_t *list, uint32_t *count);

/* "3" or "0-7": first to last, both at most `most`. */
bool mla_parse_range(const char *text, uint64_t most, uint32_t *first, uint32_t *last);
/* A number between 0 and 1, without these. */
bool mla_parse_fraction(const char *text, double *out);

/* Reads a command line of long options alone. `set` takes one option's id and text, false for a
 * value that it does not take. --help, which is among `options`, and -h print `help`. MLA_AGAIN
 * after that, MLA_OPTION after a sentence on stderr. */
enum mla_status mla_parse_options(int argc, char **argv, const struct option *options,
                                  const char *help,
                                  bool (*set)(void *context, int id, const char *text),
                                  void *context);
/* The same with at most one argument before, between or after the options: *argument, untouched
 * where there is none. */
enum mla_status mla_parse_command(int argc, char **argv, const struct option *options,
                                  const char *help,
                                  bool (*set)(void *context, int id, const char *text),
                                  void *context, const char **argument);

#endif
