/*
 * User-Mode Linux 6.1 saves 2,696 bytes of a process's extended floating-point state and writes as many back. A host whose CPU
 * has more of it (AMX: 11,008 bytes) refuses a write that is shorter than its own, and the guest panics. linux.uml calls the C
 * library's ptrace, so this one takes its place: it writes what the guest has over what is there, and that back as a whole.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEK_FIRST = 1, PEEK_LAST = 3, GET_REGISTERS = 0x4204, SET_REGISTERS = 0x4205, EXTENDED_STATE = 0x202 };

static long set_extended_state(long process, struct iovec *shorter)
{
    static char all[1 << 16] __attribute__((aligned(64)));
    struct iovec whole = { all, sizeof all };

    if (syscall(SYS_ptrace, GET_REGISTERS, process, EXTENDED_STATE, &whole) < 0)
        return -1;
    memcpy(all, shorter->iov_base, shorter->iov_len < whole.iov_len ? shorter->iov_len : whole.iov_len);
    return syscall(SYS_ptrace, SET_REGISTERS, process, EXTENDED_STATE, &whole);
}

long ptrace(int request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    long process = va_arg(arguments, pid_t);
    long address = va_arg(arguments, long);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    if (request >= PEEK_FIRST && request <= PEEK_LAST) {
        /* The C library returns the word; the system call stores it. */
        long word;
        if (syscall(SYS_ptrace, request, process, address, &word) < 0)
            return -1;
        errno = 0;
        return word;
    }
    long answer = syscall(SYS_ptrace, request, process, address, data);
    if (answer < 0 && errno == EFAULT && request == SET_REGISTERS && address == EXTENDED_STATE)
        return set_extended_state(process, data);
    return answer;
}
