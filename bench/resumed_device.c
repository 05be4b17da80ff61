/* Costs of a device in TLS 1.3 handshakes, full or resumed: bytes on the wire, and CPU of OpenSSL.
 *
 *     cc -O2 -o resumed_device bench/resumed_device.c -lssl -lcrypto
 *     openssl s_server -www -num_tickets 1 -accept PORT -cert CERT -key KEY [-cert_chain INTERMEDIATE] &
 *     ./resumed_device PORT HANDSHAKES full|resumed CA
 *
 * The device verifies the certificate of the server. Resumed handshakes use the ticket of a first connection, which does not
 * count. They include a key exchange (psk_dhe_ke). Instructions: valgrind --tool=callgrind, the difference between two counts.
 */
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static SSL_SESSION *kept;

static int keep(SSL *tls, SSL_SESSION *session)
{
    if (kept != NULL)
        return 0;
    kept = session;
    return 1;
}

static double cpu(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void fail(const char *what)
{
    perror(what);
    ERR_print_errors_fp(stderr);
    exit(1);
}

static int dial(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) != 0)
        fail("connect");
    return sock;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: %s PORT HANDSHAKES full|resumed CA\n", argv[0]);
        return 1;
    }
    int count = atoi(argv[2]), resume = strcmp(argv[3], "resumed") == 0, reused = 0;
    unsigned long received = 0, sent = 0;
    double used = 0;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set1_groups_list(context, "X25519");
    if (SSL_CTX_load_verify_locations(context, argv[4], NULL) != 1)
        fail(argv[4]);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep);
    SSL_CTX_clear_mode(context, SSL_MODE_AUTO_RETRY); /* SSL_read returns when it has read a ticket */
    for (int number = 0; number < count + resume; number++) {
        int sock = dial(atoi(argv[1])), first = resume && kept == NULL;
        char byte;
        double before = cpu();
        SSL *tls = SSL_new(context);
        SSL_set_fd(tls, sock);
        if (resume && !first) {
            SSL_SESSION *copy = SSL_SESSION_dup(kept);
            SSL_set_session(tls, copy);
            SSL_SESSION_free(copy);
        }
        if (SSL_connect(tls) != 1)
            fail("handshake");
        if (first) {
            while (kept == NULL && SSL_read(tls, &byte, 1) < 0)
                ;
        } else {
            received += BIO_number_read(SSL_get_rbio(tls));
            sent += BIO_number_written(SSL_get_wbio(tls));
            reused += SSL_session_reused(tls);
        }
        SSL_shutdown(tls);
        SSL_free(tls);
        if (!first)
            used += cpu() - before;
        close(sock);
    }
    printf("%.0f us of CPU, %lu bytes received, %lu sent, %d of %d resumed\n", used / count, received / count, sent / count,
           reused, count);
    return 0;
}
