/* A disk that refuses, fills up, hangs or is slow on demand, for the outbox's files and no others.
 *
 * Preloaded into the server. FAULTY_FILE names the outbox; its files are that one and those whose names continue it
 * (-wal, -shm, -journal, .lock). FAULTY_CONTROL names a file of 64-bit words that both sides map: the test writes how
 * the disk behaves, the library counts the faults that the server met. tests/support/faulty_disk.py is the other side.
 *
 * Intercepted are the calls with which SQLite and Python write, cut and sync files. Reads pass; what was written before
 * a fault, or is written while syncs alone fail, stays in the kernel's cache, where a killed process leaves it too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum mode { GOOD, REFUSE, REFUSE_SYNCS, FULL, HANG, SLOW };

struct control {
    uint64_t mode;
    uint64_t room; /* bytes that a full disk still takes */
    uint64_t wait; /* milliseconds: of a slow sync; that a sync hangs at most */
    uint64_t refused_writes, refused_truncations, refused_syncs, writes_without_space, hung_syncs, slow_syncs;
};

static struct control *control;
static const char *file;

static void fail(const char *what) {
    perror(what);
    abort(); /* a disk that is better than it should be would make the test pass for nothing */
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTY_CONTROL");
    file = getenv("FAULTY_FILE");
    if (!path || !file) return;
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) fail(path);
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapped == MAP_FAILED) fail(path);
    close(descriptor);
    control = mapped;
}

static int is_outbox(int descriptor) {
    char link[64], name[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, name, sizeof name);
    return length >= (ssize_t)strlen(file) && strncmp(name, file, strlen(file)) == 0;
}

/* How the disk behaves towards a descriptor now. */
static enum mode mode_of(int descriptor) {
    if (!control) return GOOD;
    enum mode mode = (enum mode)__atomic_load_n(&control->mode, __ATOMIC_ACQUIRE);
    return mode != GOOD && is_outbox(descriptor) ? mode : GOOD;
}

static int refused(uint64_t *count, int error) {
    __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    errno = error;
    return -1;
}

/* Take as much of the room that is left as a write may have. */
static size_t take_room(size_t wanted) {
    uint64_t room = __atomic_load_n(&control->room, __ATOMIC_RELAXED), taken;
    do {
        taken = room < wanted ? room : wanted;
    } while (!__atomic_compare_exchange_n(&control->room, &room, room - taken, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return (size_t)taken;
}

static void sleep_milliseconds(uint64_t milliseconds) {
    struct timespec left = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* Hang until the disk is released, or for as long as it may. */
static void hang(void) {
    uint64_t most = __atomic_load_n(&control->wait, __ATOMIC_RELAXED);
    for (uint64_t waited = 0; waited < most; waited++) {
        if (__atomic_load_n(&control->mode, __ATOMIC_ACQUIRE) != HANG) return;
        sleep_milliseconds(1);
    }
}

typedef ssize_t writer(int, const void *, size_t, off_t);
typedef int truncation(int, off_t);
typedef int syncing(int);

static ssize_t write_at(writer *real, int descriptor, const void *from, size_t count, off_t at) {
    switch (mode_of(descriptor)) {
    case REFUSE:
        return refused(&control->refused_writes, EIO);
    case FULL:
        count = take_room(count); /* a write that does not fit is cut short, as the kernel does; the next one fails */
        if (count == 0) return refused(&control->writes_without_space, ENOSPC);
        break;
    default:
        break;
    }
    return real(descriptor, from, count, at);
}

static int truncate_to(truncation *real, int descriptor, off_t size) {
    if (mode_of(descriptor) == REFUSE) return refused(&control->refused_truncations, EIO);
    return real(descriptor, size);
}

static int sync_with(syncing *real, int descriptor) {
    switch (mode_of(descriptor)) {
    case REFUSE:
    case REFUSE_SYNCS:
        return refused(&control->refused_syncs, EIO);
    case HANG:
        __atomic_add_fetch(&control->hung_syncs, 1, __ATOMIC_RELAXED);
        hang();
        break;
    case SLOW:
        __atomic_add_fetch(&control->slow_syncs, 1, __ATOMIC_RELAXED);
        sleep_milliseconds(__atomic_load_n(&control->wait, __ATOMIC_RELAXED));
        break;
    default:
        break;
    }
    return real(descriptor);
}

#define REAL(type, name) \
    static type *real; \
    if (!real) real = (type *)dlsym(RTLD_NEXT, name)

ssize_t pwrite(int descriptor, const void *from, size_t count, off_t at) {
    REAL(writer, "pwrite");
    return write_at(real, descriptor, from, count, at);
}

ssize_t pwrite64(int descriptor, const void *from, size_t count, off64_t at) {
    REAL(writer, "pwrite64");
    return write_at(real, descriptor, from, count, at);
}

int ftruncate(int descriptor, off_t size) {
    REAL(truncation, "ftruncate");
    return truncate_to(real, descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) {
    REAL(truncation, "ftruncate64");
    return truncate_to(real, descriptor, size);
}

int fsync(int descriptor) {
    REAL(syncing, "fsync");
    return sync_with(real, descriptor);
}

int fdatasync(int descriptor) {
    REAL(syncing, "fdatasync");
    return sync_with(real, descriptor);
}
