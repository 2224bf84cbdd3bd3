// Single instructions on integers.

extern "C" __global__ void integers(int* out) {
    out[0] = __dp4a(0x01ff7f80, 0x02030405, 10);
    out[1] = int(__byte_perm(0x33221100u, 0x77665544u, 0x7531u));
    out[2] = int(__byte_perm(0x000000f0u, 0, 0x8880u));
    out[3] = int(__funnelshift_r(0x11223344u, 0x55667788u, 8));
    out[4] = __clz(1) * 100 + __clz(0);
    out[5] = __ffs(8) * 100 + __popc(255u);
    out[6] = int(__brev(1u) >> 31);
    out[7] = int(__umulhi(0x80000000u, 6u));
}
