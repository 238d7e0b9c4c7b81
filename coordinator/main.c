#include "coordinator/options.h"

int main(int argc, char **argv)
{
    struct mla_server_options options;
    enum mla_status status = mla_coordinator_options_parse(argc, argv, &options);
    if (status == MLA_AGAIN)
        return 0;
    if (status == MLA_OK)
        status = mla_server_run(&options);
    return mla_status_exit_code(status);
}
