// Runs programs for AMX on processors without it: what the processor refuses as illegal is looked up and emulated.
//
// Preloaded into a process (x86-64 Linux). It answers LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and
// TDPBF16PS with the emulation the kernels can also be compiled with, and grants the permission that such a system
// would refuse. So the instructions themselves are tested: their encoding, operands, addresses and order.
#include <dlfcn.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <atomic>
#include <cstdarg>

#define INDEXSHARE_EMULATE_TILES
#include "tiles.hpp"

namespace {

namespace emulated = indexshare::tiles::emulated;

std::atomic<long> answered{0};

constexpr int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// An instruction C4 RXBmmmmm WvvvvLpp opcode modrm [sib] [displacement], taken apart.
struct Instruction {
    int map, prefix, opcode, mode, reg, rm, operand;
    int64_t base = 0, stride = 0;  // of a memory operand
    const uint8_t* end;
};

int64_t value(const ucontext_t* context, int number) { return context->uc_mcontext.gregs[REGISTERS[number]]; }

bool decode(const ucontext_t* context, Instruction& in) {
    const uint8_t* at = (const uint8_t*)context->uc_mcontext.gregs[REG_RIP];
    if (at[0] != 0xc4 || (at[2] & 0x84)) return false;  // three-byte VEX, W0, 128 bits
    in.map = at[1] & 31;
    in.prefix = at[2] & 3;
    in.operand = ~(at[2] >> 3) & 15;
    in.opcode = at[3];
    const int index_high = (~at[1] >> 6 & 1) << 3, base_high = (~at[1] >> 5 & 1) << 3, modrm = at[4];
    in.mode = modrm >> 6;
    in.reg = modrm >> 3 & 7;
    in.rm = modrm & 7;
    at += 5;
    if (in.mode != 3) {
        int base = in.rm;
        if (in.rm == 4) {
            const int sib = *at++, index = (sib >> 3 & 7) | index_high;
            base = sib & 7;
            if (index != 4) in.stride = value(context, index) << (sib >> 6);
        }
        const bool from_here = in.mode == 0 && in.rm == 5, absolute = in.mode == 0 && in.rm == 4 && base == 5;
        int32_t displacement = 0;
        if (in.mode == 1) displacement = (int8_t)*at++;
        else if (in.mode == 2 || from_here || absolute) std::memcpy(&displacement, at, 4), at += 4;
        in.base = displacement + (from_here ? (int64_t)at : absolute ? 0 : value(context, base | base_high));
    }
    in.end = at;
    return in.map == 2;
}

bool answer(const Instruction& in) {
    constexpr int NONE = 0, F3 = 2, F2 = 3;
    const bool memory = in.mode != 3;
    if (in.opcode == 0x49 && in.prefix == NONE && memory) {
        indexshare::tiles::Shapes shapes;
        std::memcpy(&shapes, (const void*)in.base, sizeof shapes);
        emulated::configure(shapes);
    } else if (in.opcode == 0x49 && in.prefix == NONE) {
        emulated::release();
    } else if (in.opcode == 0x49 && in.prefix == F2 && !memory) {
        emulated::zero(in.reg);
    } else if (in.opcode == 0x4b && in.prefix == F2 && memory && in.rm == 4) {
        emulated::load(in.reg, (const void*)in.base, in.stride);
    } else if (in.opcode == 0x4b && in.prefix == F3 && memory && in.rm == 4) {
        emulated::store(in.reg, (void*)in.base, in.stride);
    } else if (in.opcode == 0x5c && in.prefix == F3 && !memory) {
        emulated::dot(in.reg, in.rm, in.operand);
    } else {
        return false;
    }
    return true;
}

void on_illegal(int, siginfo_t*, void* raw) {
    ucontext_t* context = (ucontext_t*)raw;
    Instruction in;
    if (!decode(context, in) || !answer(in)) {
        signal(SIGILL, SIG_DFL);  // somebody else's: happens again, and ends the program
        return;
    }
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)in.end;
    ++answered;
}

__attribute__((constructor)) void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace

extern "C" long amx_traps_answered() { return answered; }

// ARCH_REQ_XCOMP_PERM and ARCH_GET_XCOMP_PERM are granted; everything else goes on to the system.
extern "C" long syscall(long number, ...) {
    static const auto real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_list list;
    va_start(list, number);
    long a[6];
    for (long& each : a) each = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && a[0] == 0x1023) return 0;
    if (number == SYS_arch_prctl && a[0] == 0x1022) {
        *(uint64_t*)a[1] = 3ull << 17;
        return 0;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
