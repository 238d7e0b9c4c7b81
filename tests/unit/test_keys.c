#include "comm/keys.h"
#include "tests/lib/scratch.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], keys_at[80];

static void setup(void)
{
    snprintf(folder, sizeof folder, "/tmp/mla-keys.XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(keys_at, sizeof keys_at, "%s/keys", folder);
}

static void teardown(void)
{
    cr_assert_eq(mla_scratch_remove(folder), 0);
}

TestSuite(keys, .init = setup, .fini = teardown);

static const char *file(const char *name)
{
    static char path[160];
    snprintf(path, sizeof path, "%s/%s", keys_at, name);
    return path;
}

static unsigned mode(const char *name)
{
    struct stat info;
    cr_assert_eq(stat(file(name), &info), 0, "%s is not there", name);
    return info.st_mode & 0777;
}

static void write_file(const char *name, const char *text)
{
    FILE *out = fopen(file(name), "w");
    cr_assert_not_null(out);
    fputs(text, out);
    fclose(out);
}

Test(keys, made_for_all_three)
{
    struct mla_keys server;
    struct mla_keys worker;
    struct mla_keys client;
    static struct mla_key_list list;
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_expect_eq(mode(""), 0700);
    cr_expect_eq(mode("server.key"), 0600);
    cr_expect_eq(mode("worker.key"), 0600);
    cr_expect_eq(mode("client.key"), 0600);
    cr_assert_eq(mla_keys_read(keys_at, "server", &server), MLA_OK);
    cr_assert_eq(mla_keys_read(keys_at, "worker", &worker), MLA_OK);
    cr_assert_eq(mla_keys_read(keys_at, "client", &client), MLA_OK);
    cr_expect_str_eq(worker.server, server.public);
    cr_expect_str_eq(client.server, server.public);
    cr_expect_str_neq(client.secret, worker.secret);
    cr_expect_str_neq(client.secret, client.public);
    cr_assert_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OK);
    cr_expect_eq(list.count, 1);
    cr_expect_str_eq(list.owners[0].name, "client");
    cr_assert_eq(mla_key_list_read(keys_at, "workers", &list), MLA_OK);
    cr_expect_eq(list.count, 1);
    cr_expect_str_eq(list.owners[0].name, "worker");
}

Test(keys, nothing_is_overwritten)
{
    struct mla_keys before;
    struct mla_keys after;
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_assert_eq(mla_keys_read(keys_at, "server", &before), MLA_OK);
    cr_expect_eq(mla_keys_make(keys_at), MLA_OPTION);
    cr_assert_eq(mla_keys_read(keys_at, "server", &after), MLA_OK);
    cr_expect_str_eq(before.secret, after.secret);
    cr_assert_eq(mla_keys_add_client(keys_at, "alice"), MLA_OK);
    cr_expect_eq(mla_keys_add_client(keys_at, "alice"), MLA_OPTION);
}

Test(keys, more_clients)
{
    struct mla_keys alice;
    static struct mla_key_list list;
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_assert_eq(mla_keys_add_client(keys_at, "alice"), MLA_OK);
    cr_assert_eq(mla_keys_read(file("alice"), "client", &alice), MLA_OK);
    cr_assert_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OK);
    cr_assert_eq(list.count, 2);
    cr_expect_str_eq(list.owners[1].name, "alice");
    static const char *const names[] = {"", "../up", "a b", "a/b",
                                        "a-name-that-is-longer-than-31-bytes"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        cr_expect_eq(mla_keys_add_client(keys_at, names[i]), MLA_OPTION, "'%s'", names[i]);
}

Test(keys, a_folder_that_others_can_enter)
{
    cr_assert_eq(mkdir(keys_at, 0755), 0);
    cr_expect_eq(mla_keys_make(keys_at), MLA_OPTION);
}

Test(keys, files_that_are_wrong)
{
    struct mla_keys keys;
    cr_expect_eq(mla_keys_read(keys_at, "server", &keys), MLA_OPTION, "there is none");
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_assert_eq(chmod(file("client.key"), 0640), 0);
    cr_expect_eq(mla_keys_read(keys_at, "client", &keys), MLA_OPTION, "others can read it");
    cr_assert_eq(chmod(file("client.key"), 0600), 0);
    cr_expect_eq(mla_keys_read(keys_at, "client", &keys), MLA_OK);
    static const char *const texts[] = {"", "\n", "too short\n",
                                        "0123456789012345678901234567890123456789x\n",
                                        "012345678901234567890123456789012345678~\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_file("client.key", texts[i]);
        cr_expect_eq(mla_keys_read(keys_at, "client", &keys), MLA_OPTION, "text %zu", i);
    }
}

/* Another user can read what root gives to a group of it, and nothing that all can read. */
Test(keys, secrets_that_root_hands_over)
{
    struct mla_keys keys;
    if (geteuid() != 0)
        cr_skip_test("only root can hand over files");
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_assert(chmod(folder, 0755) == 0 && chmod(keys_at, 0755) == 0);
    cr_assert_eq(chmod(file("client.key"), 0640), 0);
    cr_assert_eq(chmod(file("worker.key"), 0644), 0);
    cr_assert_eq(seteuid(65534), 0);
    cr_expect_eq(mla_keys_read(keys_at, "client", &keys), MLA_OK);
    cr_expect_eq(mla_keys_read(keys_at, "worker", &keys), MLA_OPTION);
    cr_assert_eq(seteuid(0), 0);
}

Test(keys, lists_that_are_wrong)
{
    static struct mla_key_list list;
    static const char *const texts[] = {
        "name\n",
        "name key\n",
        "a/b 0123456789012345678901234567890123456789\n",
        "a 0123456789012345678901234567890123456789 b\n",
        "a 01234567890123456789012345678901234567890\n",
    };
    cr_expect_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OPTION, "there is none");
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_file("clients.allow", texts[i]);
        cr_expect_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OPTION, "text %zu", i);
    }
    write_file("clients.allow", "# a comment\n\n  a 0123456789012345678901234567890123456789\n");
    cr_expect_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OK);
    cr_expect_eq(list.count, 1);
    write_file("clients.allow", "");
    cr_expect_eq(mla_key_list_read(keys_at, "clients", &list), MLA_OK, "nobody is allowed");
    cr_expect_eq(list.count, 0);
}

Test(keys, only_tcp_wants_keys)
{
    struct mla_keys keys;
    const struct mla_keys *found = &keys;
    cr_assert_eq(mla_keys_make(keys_at), MLA_OK);
    cr_expect_eq(mla_keys_for("ipc:///x", keys_at, "client", &keys, &found), MLA_OK);
    cr_expect_null(found);
    cr_expect_eq(mla_keys_for("tcp://h:1", NULL, "client", &keys, &found), MLA_OK);
    cr_expect_null(found);
    cr_expect_eq(mla_keys_for("tcp://h:1", keys_at, "client", &keys, &found), MLA_OK);
    cr_expect_eq(found, &keys);
    cr_expect_eq(mla_keys_for("tcp://h:1", folder, "client", &keys, &found), MLA_OPTION);
}
