/* The command line of mla-coordinator. */
#ifndef MLA_COORDINATOR_OPTIONS_H
#define MLA_COORDINATOR_OPTIONS_H

#include "coordinator/server.h"

/* Fills *out from argv; strings point into argv. MLA_AGAIN after --help was printed; MLA_OPTION
 * after a sentence on stderr. */
enum mla_status mla_coordinator_options_parse(int argc, char **argv,
                                              struct mla_server_options *out);

#endif
