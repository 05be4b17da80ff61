/* Client of RabbitMQ with minimal costs of its own: the ceilings of the figures, and their back end.
 *
 *   drain FROM TO              consumes lines from FROM
 *   echo FROM TO               consumes lines from FROM, and sends each back to its reply_to, or without one to TO
 *   publish FROM TO WINDOW     publishes lines to FROM with confirms, at most WINDOW of them unconfirmed
 *   trips FROM TO WINDOW       publishes WINDOW lines to FROM, and another one for each message on TO
 *
 * Standard input: host, port, user, password and virtual host, each on a line, and then an empty line for each query. The
 * answer is a line of JSON: the lines consumed (or confirmed) so far. The program ends with its input.
 *
 * cc -O2 -o ceiling ceiling.c -lrabbitmq
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { TAKE = 1, PUT = 2, PREFETCH = 5000, DEVICES = 200, LINE = 50, WINDOW = 1 << 16 };

static amqp_connection_state_t broker;
static amqp_bytes_t to;
static unsigned long long taken, said;
static char ids[DEVICES][37];

static void check(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type == AMQP_RESPONSE_NORMAL) return;
    fprintf(stderr, "%s: %s\n", what,
            reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION ? amqp_error_string2(reply.library_error) : "refused");
    exit(1);
}

static void done(int status, const char *what) {
    if (status == AMQP_STATUS_OK) return;
    fprintf(stderr, "%s: %s\n", what, amqp_error_string2(status));
    exit(1);
}

/* Reads the next parameter from standard input. */
static char *given(void) {
    static char lines[5][1024];
    static int count;
    char *line = lines[count++];
    if (fgets(line, 1024, stdin) == NULL) exit(1);
    line[strcspn(line, "\n")] = 0;
    return line;
}

static void put(amqp_bytes_t queue, amqp_bytes_t id, amqp_bytes_t body, const char *count, amqp_bytes_t reply_to) {
    amqp_table_entry_t headers[2];
    amqp_basic_properties_t properties;
    memset(&properties, 0, sizeof properties);
    headers[0].key = amqp_cstring_bytes("connection_id");
    headers[0].value.kind = AMQP_FIELD_KIND_UTF8;
    headers[0].value.value.bytes = id;
    properties.headers.entries = headers;
    properties.headers.num_entries = 1;
    properties._flags = AMQP_BASIC_HEADERS_FLAG;
    if (count != NULL) {
        /* A line, with all properties that Owsla sets. */
        headers[1].key = amqp_cstring_bytes(count);
        headers[1].value.kind = AMQP_FIELD_KIND_I64;
        headers[1].value.value.i64 = (int64_t)(said / DEVICES);
        properties.headers.num_entries = 2;
        properties.delivery_mode = 2;
        properties.reply_to = reply_to;
        properties.timestamp = (uint64_t)time(NULL);
        properties.app_id = amqp_cstring_bytes("owsla");
        properties._flags |= AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_TIMESTAMP_FLAG |
                             AMQP_BASIC_APP_ID_FLAG;
    }
    done(amqp_basic_publish(broker, PUT, amqp_empty_bytes, queue, count != NULL, 0, &properties, body), "publish");
}

static void say(amqp_bytes_t from) {
    char line[LINE + 1];
    int size = snprintf(line, sizeof line, "%d %llu ", (int)(said % DEVICES), said / DEVICES);
    amqp_bytes_t body = {LINE, line};
    memset(line + size, '.', (size_t)(LINE - size));
    put(from, amqp_cstring_bytes(ids[said % DEVICES]), body, "from_device_seq", to);
    said++;
}

static void send_back(const amqp_envelope_t *line) {
    const amqp_basic_properties_t *properties = &line->message.properties;
    const amqp_table_t *headers = &properties->headers;
    amqp_bytes_t where = properties->_flags & AMQP_BASIC_REPLY_TO_FLAG ? properties->reply_to : to;
    for (int n = 0; n < headers->num_entries; n++) {
        amqp_bytes_t key = headers->entries[n].key;
        if (key.len == 13 && memcmp(key.bytes, "connection_id", 13) == 0)
            put(where, headers->entries[n].value.value.bytes, line->message.body, NULL, amqp_empty_bytes);
    }
}

/* Consumes a message, if there is one. */
static int take(int echoes, int says, amqp_bytes_t from, uint64_t *tag) {
    struct timeval now = {0, 0};
    amqp_envelope_t line;
    amqp_maybe_release_buffers_on_channel(broker, TAKE);
    amqp_rpc_reply_t reply = amqp_consume_message(broker, &line, &now, 0);
    if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION && reply.library_error == AMQP_STATUS_TIMEOUT) return 0;
    check(reply, "take");
    taken++;
    *tag = line.delivery_tag;
    if (echoes) send_back(&line);
    if (says) say(from);
    amqp_destroy_envelope(&line);
    return 1;
}

/* Counts confirmed publishes, each once: all up to a mark, and some above it. */
static void count(uint64_t tag, int multiple) {
    static unsigned char above[WINDOW];
    static uint64_t mark;
    while (multiple && mark < tag) {
        mark++;
        taken += !above[mark % WINDOW];
        above[mark % WINDOW] = 0;
    }
    if (tag > mark && !above[tag % WINDOW]) {
        above[tag % WINDOW] = 1;
        taken++;
    }
    while (above[(mark + 1) % WINDOW]) above[++mark % WINDOW] = 0;
}

/* Reads a confirm, if there is one. */
static int confirmed(void) {
    struct timeval now = {0, 0};
    amqp_frame_t frame;
    amqp_maybe_release_buffers(broker);
    int status = amqp_simple_wait_frame_noblock(broker, &frame, &now);
    if (status == AMQP_STATUS_TIMEOUT) return 0;
    done(status, "confirm");
    if (frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
        amqp_basic_ack_t *ack = frame.payload.method.decoded;
        count(ack->delivery_tag, ack->multiple);
    } else if (frame.frame_type == AMQP_FRAME_METHOD) {
        fprintf(stderr, "confirm: the broker said %s\n", amqp_method_name(frame.payload.method.id));
        exit(1);
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 4) return 1;
    setvbuf(stdin, NULL, _IONBF, 0);
    int echoes = !strcmp(argv[1], "echo"), publishes = !strcmp(argv[1], "publish"), trips = !strcmp(argv[1], "trips");
    amqp_bytes_t from = amqp_cstring_bytes(argv[2]);
    unsigned long long window = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    if (window > WINDOW / 2) return 1;
    uint64_t tag = 0;
    to = amqp_cstring_bytes(argv[3]);
    for (int n = 0; n < DEVICES; n++) snprintf(ids[n], sizeof ids[n], "5eed0000-0000-4000-8000-%012d", n);

    char *host = given(), *port = given(), *user = given(), *password = given(), *vhost = given();
    broker = amqp_new_connection();
    amqp_socket_t *sock = amqp_tcp_socket_new(broker);
    done(amqp_socket_open(sock, host, atoi(port)), "connect");
    check(amqp_login(broker, vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, user, password), "login");
    for (amqp_channel_t channel = TAKE; channel <= PUT; channel++) {
        amqp_channel_open(broker, channel);
        check(amqp_get_rpc_reply(broker), "channel");
    }
    amqp_queue_declare(broker, TAKE, from, 0, 1, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(broker), "queue");
    amqp_queue_declare(broker, TAKE, to, 0, 1, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(broker), "queue");
    if (publishes) {
        amqp_confirm_select(broker, PUT);
    } else {
        amqp_basic_qos(broker, TAKE, 0, PREFETCH, 0);
        check(amqp_get_rpc_reply(broker), "qos");
        amqp_basic_consume(broker, TAKE, trips ? to : from, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    }
    check(amqp_get_rpc_reply(broker), "begin");
    puts("{\"lines\": 0}");
    fflush(stdout);
    while (trips && said < window) say(from);

    struct pollfd what[2] = {{0, POLLIN, 0}, {amqp_get_sockfd(broker), POLLIN, 0}};
    for (;;) {
        /* Work in portions, so that a query is answered even under constant load. */
        int more = 1, busy = publishes && said - taken < window;
        for (int n = 0; more && n < 256; n++) more = publishes ? confirmed() : take(echoes, trips, from, &tag);
        if (tag) done(amqp_basic_ack(broker, TAKE, tag, 1), "acknowledge");
        tag = 0;
        for (int n = 0; publishes && n < 256 && said - taken < window; n++) say(from);
        if (poll(what, 2, more || busy ? 0 : -1) < 0) return 1;
        if (what[0].revents) {
            char question[64];
            if (read(0, question, sizeof question) <= 0) return 0;
            printf("{\"lines\": %llu}\n", taken);
            fflush(stdout);
        }
    }
}
