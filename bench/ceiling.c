/* Client of RabbitMQ with minimal costs of its own: the ceilings of the figures, and their back end.
 *
 *   drain FROM TO              consumes lines from FROM
 *   echo FROM TO               consumes lines from FROM, and sends each back to its reply_to, or without one to TO
 *   publish FROM TO WINDOW     publishes lines to FROM with confirms, at most WINDOW of them unconfirmed
 *   trips FROM TO WINDOW       publishes WINDOW lines to FROM, and another one for each message on TO
 *
 * Queues that exist are used as they are, whatever their type: of a stream, lines that come from now on.
 *
 * Standard input: host, port, user, password and virtual host, each on a line, and then an empty line for each query. The
 * answer is a line of JSON: the lines consumed (or confirmed) so far, their bytes, and those that were missing or repeated by
 * the numbers of their connections. The program ends with its input.
 *
 * A message is a line, or with the header owsla_batch a batch of them. Answers to messages of the exchange amq.topic go there,
 * with the routing key answers.N for lines.N: devices that speak MQTT.
 *
 *   decode COUNT               decodes the batch on standard input as `drain` does, and prints the same JSON, without a broker
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
static unsigned long long taken, said, bytes, missing, repeated;
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

static void malformed(const char *why) {
    fprintf(stderr, "malformed batch: %s\n", why);
    exit(1);
}

/* The connections whose lines were consumed, by their ids: a hash table with open addressing. */
struct connection {
    unsigned char size; /* 0: a free place */
    char id[47];
    uint64_t next; /* number of the line that is expected next */
};
static struct connection *connections;
static size_t places, used;

static struct connection *place(amqp_bytes_t id) {
    const unsigned char *text = id.bytes;
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t n = 0; n < id.len; n++) hash = (hash ^ text[n]) * 1099511628211u;
    size_t at = hash & (places - 1);
    while (connections[at].size && (connections[at].size != id.len || memcmp(connections[at].id, text, id.len)))
        at = (at + 1) & (places - 1);
    return &connections[at];
}

static void grow(void) {
    struct connection *old = connections;
    size_t count = places;
    places = places ? 2 * places : 1024;
    connections = calloc(places, sizeof *connections);
    if (connections == NULL) exit(1);
    for (size_t n = 0; n < count; n++)
        if (old[n].size) *place((amqp_bytes_t){old[n].size, old[n].id}) = old[n];
    free(old);
}

/* Checks the number of a line: each connection counts its own from 0. */
static void numbered(amqp_bytes_t id, uint64_t number) {
    if (id.len == 0 || id.len > sizeof connections->id) malformed("the size of a connection id");
    if (2 * (used + 1) > places) grow();
    struct connection *found = place(id);
    if (!found->size) {
        used++;
        found->size = (unsigned char)id.len;
        memcpy(found->id, id.bytes, id.len);
    }
    if (number < found->next) {
        repeated++;
        return;
    }
    missing += number - found->next;
    found->next = number + 1;
}

/* MessagePack: `at` is the next byte, `end` the end of the body. */
struct pack {
    const unsigned char *at, *end;
};

static uint64_t big_endian(struct pack *from, int size) {
    uint64_t value = 0;
    if (from->end - from->at < size) malformed("it ends within a number");
    while (size--) value = value << 8 | *from->at++;
    return value;
}

static unsigned char type(struct pack *from) { return (unsigned char)big_endian(from, 1); }

static uint64_t unsigned_integer(struct pack *from) {
    unsigned char kind = type(from);
    if (kind < 0x80) return kind;
    if (kind >= 0xcc && kind <= 0xcf) return big_endian(from, 1 << (kind - 0xcc));
    if (kind >= 0xd0 && kind <= 0xd3) {
        int size = 1 << (kind - 0xd0);
        uint64_t value = big_endian(from, size);
        if (value >> (8 * size - 1)) malformed("a negative number");
        return value;
    }
    malformed("not an integer");
    return 0;
}

static amqp_bytes_t raw(struct pack *from, uint64_t size) {
    amqp_bytes_t value = {size, (void *)from->at};
    if ((uint64_t)(from->end - from->at) < size) malformed("it ends within a value");
    from->at += size;
    return value;
}

/* Reads a string, or nil as an empty one. */
static amqp_bytes_t string(struct pack *from) {
    unsigned char kind = type(from);
    if (kind == 0xc0) return amqp_empty_bytes;
    if (kind >= 0xa0 && kind <= 0xbf) return raw(from, kind & 0x1f);
    if (kind < 0xd9 || kind > 0xdb) malformed("not a string");
    return raw(from, big_endian(from, 1 << (kind - 0xd9)));
}

static amqp_bytes_t binary(struct pack *from) {
    unsigned char kind = type(from);
    if (kind < 0xc4 || kind > 0xc6) malformed("not a binary value");
    return raw(from, big_endian(from, 1 << (kind - 0xc4)));
}

static void array_of_five(struct pack *from) {
    unsigned char kind = type(from);
    uint64_t size = kind == 0xdc ? big_endian(from, 2) : kind == 0xdd ? big_endian(from, 4) : kind ^ 0x90;
    if (size != 5) malformed("not an array of five");
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

/* Sends a line back to a device that speaks MQTT, if it came from one. */
static int send_back_by_topic(const amqp_envelope_t *line) {
    static const char topic[] = "amq.topic", from[] = "lines.";
    amqp_bytes_t key = line->routing_key;
    if (line->exchange.len != sizeof topic - 1 || memcmp(line->exchange.bytes, topic, sizeof topic - 1)) return 0;
    if (key.len < sizeof from || memcmp(key.bytes, from, sizeof from - 1)) return 0;
    char answers[256];
    int size = snprintf(answers, sizeof answers, "answers.%.*s", (int)(key.len - sizeof from + 1),
                        (char *)key.bytes + sizeof from - 1);
    if (size < 0 || size >= (int)sizeof answers) return 0;
    amqp_basic_properties_t persistent; /* which devices get with QoS 1 */
    memset(&persistent, 0, sizeof persistent);
    persistent._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
    persistent.delivery_mode = 2;
    done(amqp_basic_publish(broker, PUT, line->exchange, (amqp_bytes_t){(size_t)size, answers}, 0, 0, &persistent,
                            line->message.body),
         "publish");
    return 1;
}

/* Takes the lines of a batch of `count`, and sends them back with `echoes`. */
static void take_batch(amqp_bytes_t body, int64_t count, int echoes, amqp_bytes_t where) {
    struct pack from = {body.bytes, (unsigned char *)body.bytes + body.len};
    int64_t lines = 0;
    for (; from.at < from.end; lines++) {
        array_of_five(&from);
        amqp_bytes_t id = string(&from);
        numbered(id, unsigned_integer(&from));
        unsigned_integer(&from); /* received_ms */
        string(&from);           /* device_id */
        amqp_bytes_t line = binary(&from);
        bytes += line.len;
        if (echoes) put(where, id, line, NULL, amqp_empty_bytes);
    }
    if (lines != count) malformed("the header owsla_batch has another number of lines");
    taken += (unsigned long long)lines;
}

static int64_t integer(const amqp_field_value_t *value) {
    switch (value->kind) {
        case AMQP_FIELD_KIND_I64: return value->value.i64;
        case AMQP_FIELD_KIND_I32: return value->value.i32;
        case AMQP_FIELD_KIND_I16: return value->value.i16;
        case AMQP_FIELD_KIND_I8: return value->value.i8;
        default: return -1;
    }
}

static int named(amqp_bytes_t key, const char *name) {
    return key.len == strlen(name) && memcmp(key.bytes, name, key.len) == 0;
}

/* Takes the lines of a message, and sends them back with `echoes`. */
static void take_lines(const amqp_envelope_t *message, int echoes) {
    const amqp_basic_properties_t *properties = &message->message.properties;
    const amqp_table_t *headers = &properties->headers;
    amqp_bytes_t where = properties->_flags & AMQP_BASIC_REPLY_TO_FLAG ? properties->reply_to : to;
    amqp_bytes_t id = amqp_empty_bytes;
    int64_t number = -1;
    for (int n = 0; properties->_flags & AMQP_BASIC_HEADERS_FLAG && n < headers->num_entries; n++) {
        const amqp_table_entry_t *header = &headers->entries[n];
        if (named(header->key, "owsla_batch")) {
            take_batch(message->message.body, integer(&header->value), echoes, where);
            return;
        }
        if (named(header->key, "connection_id")) id = header->value.value.bytes;
        if (named(header->key, "from_device_seq")) number = integer(&header->value);
    }
    taken++;
    bytes += message->message.body.len;
    if (id.len && number >= 0) numbered(id, (uint64_t)number);
    if (echoes && !send_back_by_topic(message) && id.len)
        put(where, id, message->message.body, NULL, amqp_empty_bytes);
}

static void answer(void) {
    printf("{\"lines\": %llu, \"bytes\": %llu, \"missing\": %llu, \"repeated\": %llu}\n", taken, bytes, missing, repeated);
    fflush(stdout);
}

static int decode(int64_t count) {
    static unsigned char body[1 << 24];
    amqp_bytes_t batch = {fread(body, 1, sizeof body, stdin), body};
    take_batch(batch, count, 0, amqp_empty_bytes);
    answer();
    return 0;
}

/* Consumes a message, if there is one. A message to devices is not looked into: `says` counts them, and publishes a line each. */
static int take(int echoes, int says, amqp_bytes_t from, uint64_t *tag) {
    struct timeval now = {0, 0};
    amqp_envelope_t line;
    amqp_maybe_release_buffers_on_channel(broker, TAKE);
    amqp_rpc_reply_t reply = amqp_consume_message(broker, &line, &now, 0);
    if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION && reply.library_error == AMQP_STATUS_TIMEOUT) return 0;
    check(reply, "take");
    *tag = line.delivery_tag;
    if (says) {
        taken++;
        say(from);
    } else {
        take_lines(&line, echoes);
    }
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

static void open_channel(amqp_channel_t channel) {
    amqp_channel_open(broker, channel);
    check(amqp_get_rpc_reply(broker), "channel");
}

/* Declares a queue unless it exists: with another type, its declaration would be refused. */
static void declare(amqp_bytes_t queue) {
    amqp_queue_declare(broker, TAKE, queue, 1, 1, 0, 0, amqp_empty_table);
    amqp_rpc_reply_t reply = amqp_get_rpc_reply(broker);
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
        amqp_channel_close_ok_t closed = {0};
        done(amqp_send_method(broker, TAKE, AMQP_CHANNEL_CLOSE_OK_METHOD, &closed), "close");
        open_channel(TAKE);
        amqp_queue_declare(broker, TAKE, queue, 0, 1, 0, 0, amqp_empty_table);
        reply = amqp_get_rpc_reply(broker);
    }
    check(reply, "queue");
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "decode")) return decode(atoll(argv[2]));
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
    for (amqp_channel_t channel = TAKE; channel <= PUT; channel++) open_channel(channel);
    declare(from);
    declare(to);
    if (publishes) {
        amqp_confirm_select(broker, PUT);
    } else {
        amqp_basic_qos(broker, TAKE, 0, PREFETCH, 0);
        check(amqp_get_rpc_reply(broker), "qos");
        amqp_basic_consume(broker, TAKE, trips ? to : from, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    }
    check(amqp_get_rpc_reply(broker), "begin");
    answer();
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
            answer();
        }
    }
}
