/* mla-keys: makes the keys that comm/keys.h describes. */
#include "comm/keys.h"

#include <stdio.h>
#include <string.h>

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

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (argc == 2 && argv[1][0] != '-')
        return mla_status_exit_code(mla_keys_make(argv[1]));
    if (argc == 4 && argv[1][0] != '-' && strcmp(argv[2], "--client") == 0)
        return mla_status_exit_code(mla_keys_add_client(argv[1], argv[3]));
    fputs(usage, stderr);
    return 2;
}
