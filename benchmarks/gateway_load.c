/* The upstream and the streaming client of benchmarks/gateway.py: one thread each, epoll, one send() per chunk.
 *
 *   gateway_load upstream                                    prints its port, then a line per stream that was cut
 *   gateway_load streams PORT STREAMS REQUESTS CHUNKS US     prints one JSON document
 *
 * Every chunk carries the CLOCK_MONOTONIC time of its send as @ and 19 digits, so that its delay is exact. The options of
 * a request are read from its body: "stream":true, "max_tokens":CHUNKS, "seed":US (the interval, 0: none).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DIGITS 19
#define IN_TIME 10000000 /* ns */
#define PADDING 1024

static const char ANSWER_FORMAT[] = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                                  "content-length: %zu\r\ncontent-type: application/json\r\n\r\n%s%*s";
static const char ANSWER[] =
    "{\"id\":\"chatcmpl-9f3c1d7a5b2e4c6f8a0b1c2d3e4f5a6b\",\"object\":\"chat.completion\",\"created\":1767225600,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hello\"},"
    "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1,\"total_tokens\":10}}";
static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                                  "content-type: text/event-stream; charset=utf-8\r\n"
                                  "transfer-encoding: chunked\r\n\r\n";
static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-9f3c1d7a5b2e4c6f8a0b1c2d3e4f5a6b\",\"object\":\"chat.completion.chunk\","
    "\"created\":1767225600,\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\""
    "@0000000000000000000\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n";
static const char STREAM_END[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

static int poller;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(poller, operation, fd, &event)) fail("epoll_ctl");
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static long number(const char *text, const char *name) {
    const char *found = strcasestr(text, name);
    return found ? strtol(found + strlen(name), NULL, 10) : 0;
}

/* ---- the upstream ---- */

struct peer {
    struct peer *next; /* in the list of peers with a stream */
    int fd;
    uint32_t events;
    size_t have;
    char in[8192];
    long discard; /* bytes of a large body that have not arrived yet */
    bool streams;
    long chunks;
    int64_t interval, due;
    const char *out;
    size_t out_left;
    char text[sizeof ANSWER_FORMAT + sizeof ANSWER + PADDING]; /* a whole answer, or a chunk */
};

static struct peer *streaming;
static char chunk_template[sizeof EVENT + 16], scratch[1 << 18];
static size_t chunk_length, stamp_at;

static void prepare_texts(void) {
    chunk_length = sprintf(chunk_template, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
    stamp_at = strchr(chunk_template, '@') + 1 - chunk_template;
}

static void end_stream(struct peer *peer) {
    struct peer **at = &streaming;
    while (*at && *at != peer) at = &(*at)->next;
    if (*at) *at = peer->next;
    peer->streams = false;
}

static void drop(struct peer *peer) {
    if (peer->streams) {
        printf("cut %lld\n", (long long)now());
        end_stream(peer);
    }
    close(peer->fd);
    free(peer);
}

static void put_stamp(char *digits, int64_t stamp) {
    for (int i = DIGITS; i-- > 0; stamp /= 10) digits[i] = '0' + stamp % 10;
}

/* Prepares the next chunk of a stream, with its time. */
static void next_piece(struct peer *peer) {
    if (peer->chunks-- == 0) {
        peer->out = STREAM_END;
        peer->out_left = sizeof STREAM_END - 1;
        end_stream(peer);
        return;
    }
    put_stamp(peer->text + stamp_at, now());
    peer->out = peer->text;
    peer->out_left = chunk_length;
    peer->due += peer->interval;
}

static bool flush(struct peer *peer) {
    while (peer->out_left) {
        ssize_t sent = send(peer->fd, peer->out, peer->out_left, MSG_NOSIGNAL);
        if (sent < 0) return false; /* a broken connection is noticed when it is read */
        peer->out += sent;
        peer->out_left -= sent;
    }
    return true;
}

static void pump(struct peer *peer) {
    uint32_t events = EPOLLIN;
    for (int turn = 0;; turn++) {
        if (!flush(peer) || turn == 32) events |= EPOLLOUT;
        if (events & EPOLLOUT || !peer->streams || (peer->interval && peer->due > now())) break;
        next_piece(peer);
    }
    if (events != peer->events) watch(EPOLL_CTL_MOD, peer->fd, peer->events = events, peer);
}

static void begin_stream(struct peer *peer) {
    peer->out = STREAM_HEAD;
    peer->out_left = sizeof STREAM_HEAD - 1;
    peer->chunks = number(peer->in, "\"max_tokens\":");
    peer->interval = number(peer->in, "\"seed\":") * 1000;
    peer->due = now() + (peer->interval ? random() % peer->interval : 0);
    strcpy(peer->text, chunk_template);
    peer->streams = true;
    peer->next = streaming;
    streaming = peer;
}

/* Answers differ in length, so that a proxy that caches heads has no advantage. */
static void answer(struct peer *peer) {
    peer->have = 0;
    if (strstr(peer->in, "\"stream\":true")) {
        begin_stream(peer);
    } else {
        int padding = random() % PADDING;
        peer->out = peer->text;
        peer->out_left = sprintf(peer->text, ANSWER_FORMAT, sizeof ANSWER - 1 + padding, ANSWER, padding, "");
    }
    pump(peer);
}

/* Keeps a small request whole, and of a large one only the beginning. */
static void take(struct peer *peer, size_t came) {
    peer->have += came;
    peer->in[peer->have] = 0;
    const char *end = strstr(peer->in, "\r\n\r\n");
    if (!end) return;
    size_t whole = end + 4 - peer->in + number(peer->in, "\ncontent-length:");
    if (peer->have >= whole) return answer(peer);
    if (whole >= sizeof peer->in) peer->discard = whole - peer->have;
}

static void readable(struct peer *peer) {
    bool whole = peer->discard == 0 && !peer->streams;
    char *into = whole ? peer->in + peer->have : scratch;
    ssize_t came = recv(peer->fd, into, whole ? sizeof peer->in - 1 - peer->have : sizeof scratch, 0);
    if (came < 0 && errno == EAGAIN) return;
    if (came <= 0) return drop(peer);
    if (whole) return take(peer, came);
    if (peer->discard && (peer->discard -= came) == 0) answer(peer);
}

static void accept_peers(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct peer *peer = calloc(1, sizeof *peer);
        peer->fd = fd;
        no_delay(fd);
        watch(EPOLL_CTL_ADD, fd, peer->events = EPOLLIN, peer);
    }
}

/* Sends what is due, and wakes up when the next chunk is. */
static void keep_cadence(int timer) {
    int64_t first = INT64_MAX, time = now();
    for (struct peer *peer = streaming, *next; peer; peer = next) {
        next = peer->next;
        if (!peer->interval || peer->events & EPOLLOUT) continue;
        if (peer->due <= time) pump(peer);
        if (peer->due < first) first = peer->due; /* a stream that has ended causes one needless wake-up */
    }
    if (first == INT64_MAX) return;
    struct itimerspec at = {.it_value = {first / 1000000000, first % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void upstream(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) fail("listen");
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    prepare_texts();
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < count; i++) {
            void *which = events[i].data.ptr;
            if (which == &listener) accept_peers(listener);
            else if (which == &timer) (void)!read(timer, scratch, 8);
            else if (events[i].events & ~EPOLLOUT) readable(which);
            else pump(which);
        }
        keep_cadence(timer);
    }
}

/* ---- the client ---- */

struct stream {
    int fd;
    long requests, chunks;
    int64_t sent;
    size_t kept;
    char in[1 << 17];
};

struct samples {
    int64_t *values;
    long count;
};

static char request[512];
static struct samples delays, firsts;
static int64_t settled; /* all streams start at once, unlike real ones: delays before this time do not count */
static long wanted_chunks, chunks, in_time, cut, running;

static void record(struct samples *samples, int64_t value) { samples->values[samples->count++] = value; }

static int ascending(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static double percentile(struct samples *samples, int percent) {
    if (samples->count == 0) return 0;
    qsort(samples->values, samples->count, sizeof(int64_t), ascending);
    return samples->values[samples->count * percent / 100] / 1000.0;
}

static void ask(struct stream *stream) {
    stream->requests--;
    stream->chunks = stream->kept = 0;
    stream->sent = now();
    if (send(stream->fd, request, strlen(request), MSG_NOSIGNAL) < 0) fail("send");
}

static void leave(struct stream *stream, bool whole) {
    cut += !whole;
    running--;
    close(stream->fd);
}

/* Records every time stamp that arrived; an incomplete one is kept for the next call. */
static void scan(struct stream *stream, size_t have, int64_t time) {
    char *at = stream->in, *end = stream->in + have, *mark;
    while ((mark = memchr(at, '@', end - at)) && end - mark > DIGITS) {
        char digits[DIGITS + 1] = {0};
        int64_t delay = time - strtoll(memcpy(digits, mark + 1, DIGITS), NULL, 10);
        chunks += 1;
        if (time >= settled) {
            record(&delays, delay);
            in_time += delay <= IN_TIME;
        }
        if (stream->chunks++ == 0) record(&firsts, time - stream->sent);
        at = mark + 1 + DIGITS;
    }
    char *keep = mark ? mark : end - at > 4 ? end - 4 : at;
    stream->kept = end - keep;
    memmove(stream->in, keep, stream->kept);
}

static void hear(struct stream *stream) {
    ssize_t came = recv(stream->fd, stream->in + stream->kept, sizeof stream->in - stream->kept, 0);
    int64_t time = now();
    if (came < 0 && errno == EAGAIN) return;
    if (came <= 0) return leave(stream, false);
    size_t have = stream->kept + came;
    bool ends = have >= 5 && memcmp(stream->in + have - 5, "0\r\n\r\n", 5) == 0;
    scan(stream, have, time);
    if (!ends || stream->chunks < wanted_chunks) return;
    if (stream->requests) ask(stream);
    else leave(stream, true);
}

static void open_stream(struct stream *stream, int port, long requests) {
    struct sockaddr_in address = loopback(port);
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    stream->requests = requests;
    if (connect(stream->fd, (void *)&address, sizeof address)) fail("connect");
    no_delay(stream->fd);
    watch(EPOLL_CTL_ADD, stream->fd, EPOLLIN, stream);
}

static int streams(int port, long count, long requests, long length, long interval) {
    char body[256];
    sprintf(body,
            "{\"model\":\"bench\",\"stream\":true,\"max_tokens\":%ld,\"seed\":%ld,"
            "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", length, interval);
    sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            "Content-Length: %zu\r\n\r\n%s", port, strlen(body), body);
    struct stream *all = calloc(count, sizeof *all);
    delays.values = calloc(count * requests * (length + 1), sizeof(int64_t));
    firsts.values = calloc(count * requests, sizeof(int64_t));
    wanted_chunks = length;
    running = count;
    for (long i = 0; i < count; i++) open_stream(&all[i], port, requests);
    int64_t start = now();
    settled = start + 10 * interval * 1000;
    for (long i = 0; i < count; i++) ask(&all[i]);
    while (running) {
        struct epoll_event events[64];
        int ready = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < ready; i++) hear(events[i].data.ptr);
    }
    printf("{\"seconds\": %.6f, \"chunks\": %ld, \"cut\": %ld, \"in_time\": %.5f, \"delay_p50\": %.1f, \"delay_p99\": %.1f, "
           "\"first_p50\": %.1f, \"first_p99\": %.1f}\n", (now() - start) / 1e9, chunks, cut, (double)in_time / delays.count,
           percentile(&delays, 50), percentile(&delays, 99), percentile(&firsts, 50), percentile(&firsts, 99));
    return 0;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (count == 2) upstream();
    if (count == 7) return streams(atoi(words[2]), atol(words[3]), atol(words[4]), atol(words[5]), atol(words[6]));
    return 2;
}
