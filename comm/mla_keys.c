/* mla-keys: makes the keys that comm/keys.h describes. */
#include "comm/keys.h"
#include "proto/parse.h"

#include <stdio.h>

static const char usage[] =
    "usage: mla-keys DIR\n"
    "       mla-keys DIR --client NAME\n"
    "\n"
    "Makes the folder DIR with keys for the service, one worker and one client, for --curve-keys\n"
    "of all three. With --client: one more client's, in DIR/NAME, which is what that client "
    "needs;\n"
    "the coordinator knows it from its next start. Nothing is overwritten.\n"
    "\n"
    "On other hosts: workers need worker.key and server.pub, clients client.key and server.pub.\n"
    "\n"
    "exit codes: 0 made, 2 wrong option or a file that exists, 1 anything else\n";

static const struct option options[] = {
    {"client", required_argument, NULL, 256}, {"help", no_argument, NULL, 257}, {0}};

static bool set(void *client, int id, const char *text)
{
    (void)id;
    *(const char **)client = text;
    return *text != '\0';
}

int main(int argc, char **argv)
{
    const char *client = NULL;
    const char *folder = NULL;
    enum mla_status status =
        mla_parse_command(argc, argv, options, usage, set, (void *)&client, &folder);
    if (status != MLA_OK)
        return status == MLA_AGAIN ? 0 : mla_status_exit_code(status);
    if (folder)
        return mla_status_exit_code(client ? mla_keys_add_client(folder, client)
                                           : mla_keys_make(folder));
    fputs(usage, stderr);
    return 2;
}
