#include "coordinator/metrics_server.h"

#include "proto/clock.h"
#include "proto/parse.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { CONNECTIONS_MAX = 16, TIMEOUT_S = 5, FRESH_S = 5, SENTENCE_BYTES = 128 };

struct mla_metrics_server {
    struct MHD_Daemon *daemon;
    pthread_mutex_t lock; /* of the pages; held for a copy */
    char *draft, *page;
    uint64_t published_ns;
    bool healthy;
    char sentence[SENTENCE_BYTES - 2];
};

struct answer {
    unsigned code;
    const char *type;
    char *text; /* malloc'ed, or NULL: `sentence` */
    char sentence[SENTENCE_BYTES];
};

static void answer_metrics(struct mla_metrics_server *server, struct answer *answer)
{
    pthread_mutex_lock(&server->lock);
    answer->text = strdup(server->page);
    pthread_mutex_unlock(&server->lock);
    answer->type = "text/plain; version=0.0.4; charset=utf-8";
    answer->code = answer->text ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
}

/* Whether all groups are ready; `alive`: whether the coordinator's loop goes round, which is not
 * helped by starting it again when it does. */
static void answer_health(struct mla_metrics_server *server, bool alive, struct answer *answer)
{
    pthread_mutex_lock(&server->lock);
    bool fresh = mla_now_ns() < server->published_ns + FRESH_S * 1000000000ull;
    answer->code = fresh && (alive || server->healthy) ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    snprintf(answer->sentence, sizeof answer->sentence, "%s\n",
             fresh ? server->sentence : "the coordinator does not answer");
    pthread_mutex_unlock(&server->lock);
}

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_bytes, void **request)
{
    struct answer answer = {.code = MHD_HTTP_NOT_FOUND,
                            .type = "text/plain; charset=utf-8",
                            .sentence = "there are /metrics, /healthz and /livez\n"};
    (void)version;
    (void)upload;
    (void)request;
    if (*upload_bytes > 0) { /* nobody reads it */
        *upload_bytes = 0;
        return MHD_YES;
    }
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0) {
        answer.code = MHD_HTTP_METHOD_NOT_ALLOWED;
        snprintf(answer.sentence, sizeof answer.sentence, "only GET\n");
    } else if (strcmp(url, "/metrics") == 0) {
        answer_metrics(context, &answer);
    } else if (strcmp(url, "/healthz") == 0) {
        answer_health(context, false, &answer);
    } else if (strcmp(url, "/livez") == 0) {
        answer_health(context, true, &answer);
    }
    struct MHD_Response *response =
        answer.text ? MHD_create_response_from_buffer(strlen(answer.text), answer.text,
                                                      MHD_RESPMEM_MUST_FREE)
                    : MHD_create_response_from_buffer(strlen(answer.sentence), answer.sentence,
                                                      MHD_RESPMEM_MUST_COPY);
    if (!response) {
        free(answer.text);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, answer.type);
    enum MHD_Result result = MHD_queue_response(connection, answer.code, response);
    MHD_destroy_response(response);
    return result;
}

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

static bool parse_address(const char *text, union address *out)
{
    char host[64] = "";
    uint64_t port = 0;
    const char *colon = strrchr(text, ':');
    if (!colon || colon - text >= (ptrdiff_t)sizeof host ||
        !mla_parse_number(colon + 1, 0, UINT16_MAX, &port))
        return false;
    memcpy(host, text, (size_t)(colon - text));
    size_t length = strlen(host);
    *out = (union address){.four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}};
    if (inet_pton(AF_INET, host, &out->four.sin_addr) == 1)
        return true;
    if (length < 2 || host[0] != '[' || host[length - 1] != ']')
        return false;
    host[length - 1] = '\0';
    *out = (union address){.six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)}};
    return inet_pton(AF_INET6, host + 1, &out->six.sin6_addr) == 1;
}

enum mla_status mla_metrics_server_create(const char *address, struct mla_metrics_server **out)
{
    union address at;
    if (!parse_address(address, &at)) {
        fprintf(stderr, "%s: --metrics wants an address and a port, in numbers\n", address);
        return MLA_ENDPOINT;
    }
    enum mla_status status = MLA_MEMORY;
    struct mla_metrics_server *server = calloc(1, sizeof *server);
    if (!server)
        return status;
    pthread_mutex_init(&server->lock, NULL);
    server->draft = calloc(1, MLA_METRICS_PAGE_BYTES);
    server->page = calloc(1, MLA_METRICS_PAGE_BYTES);
    if (!server->draft || !server->page)
        goto fail;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL;
    if (at.any.sa_family == AF_INET6)
        flags |= MHD_USE_IPv6;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, handle, server, MHD_OPTION_SOCK_ADDR, &at.any,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16 << 10, MHD_OPTION_END);
    if (!server->daemon) {
        fprintf(stderr, "%s: nothing can listen there for --metrics\n", address);
        status = MLA_ENDPOINT;
        goto fail;
    }
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_BIND_PORT);
    fprintf(stderr, "metrics at http://%.*s:%u/metrics\n", (int)(strrchr(address, ':') - address),
            address, info ? info->port : 0u);
    *out = server;
    return MLA_OK;
fail:
    mla_metrics_server_destroy(&server);
    return status;
}

void mla_metrics_server_destroy(struct mla_metrics_server **server_at)
{
    struct mla_metrics_server *server = *server_at;
    if (!server)
        return;
    if (server->daemon)
        MHD_stop_daemon(server->daemon);
    pthread_mutex_destroy(&server->lock);
    free(server->draft);
    free(server->page);
    free(server);
    *server_at = NULL;
}

char *mla_metrics_server_draft(struct mla_metrics_server *server)
{
    return server->draft;
}

void mla_metrics_server_publish(struct mla_metrics_server *server, bool healthy,
                                const char *sentence)
{
    pthread_mutex_lock(&server->lock);
    char *page = server->page;
    server->page = server->draft;
    server->draft = page;
    server->healthy = healthy;
    server->published_ns = mla_now_ns();
    snprintf(server->sentence, sizeof server->sentence, "%s", sentence);
    pthread_mutex_unlock(&server->lock);
}
