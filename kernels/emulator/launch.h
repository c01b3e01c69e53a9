// What makes a library of kernels callable: one pair of C functions for each instance.
#pragma once
#include "checked.h"
#include <tuple>
#include <utility>

namespace emu {

template <class... P> struct Call {
    void (*kernel)(P...);
    std::tuple<P...> args;

    static void body(void* closure) {
        auto* call = (Call*)closure;
        std::apply(call->kernel, call->args);
    }
    template <size_t... I> static int run(void (*kernel)(P...), const Launch* launch, std::index_sequence<I...>) {
        Call call{kernel, {Param<P>::get(launch->args[I], launch->regions[I])...}};
        return emu_run(launch, body, &call);
    }
};

template <class... P> int run(void (*kernel)(P...), const Launch* launch) {
    return Call<P...>::run(kernel, launch, std::index_sequence_for<P...>{});
}

template <class... P> int params(void (*)(P...), ParamInfo* out, int max) {
    const ParamInfo all[] = {Param<P>::info..., ParamInfo{0, 0}};
    int count = sizeof...(P);
    for (int i = 0; i < count && i < max; i++) out[i] = all[i];
    return count;
}

}  // namespace emu

#define EMU_KERNEL(index, ...)                                                                                   \
    extern "C" int emu_launch_##index(const emu::Launch* launch) { return emu::run(&__VA_ARGS__, launch); }      \
    extern "C" int emu_params_##index(emu::ParamInfo* out, int max) { return emu::params(&__VA_ARGS__, out, max); }
