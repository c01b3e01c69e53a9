// Pointers that know what they may reach. Every access is checked for bounds, alignment and, when reading, for bytes that
// nobody has written; the place in the kernel's source comes along through default arguments.
#pragma once
#include "api.h"
#include <string.h>

namespace emu {

inline void check(const Region* region, const void* at, uint64_t bytes, uint64_t align, bool write, Site site) {
    uint64_t offset = (uint64_t)((const char*)at - region->start);
    if (offset > region->len || bytes > region->len - offset || (uint64_t)at % align) [[unlikely]]
        emu_fail_access(region, at, bytes, align, write, site);
    uint8_t* shadow = region->shadow + offset;
    if (write) {
        region->written += bytes;
        memset(shadow, 1, bytes);
        return;
    }
    region->read += bytes;
    for (uint64_t i = 0; i < bytes; i++)
        if (!shadow[i]) [[unlikely]]
            emu_fail_access(region, at, bytes, align, write, site);
}

inline void unwritten(const Region* region, const void* at, uint64_t bytes) {
    memset(region->shadow + ((const char*)at - region->start), 0, bytes);
}

template <class T> struct Plain {
    using type = T;
};
template <class T> struct Plain<const T> {
    using type = T;
};

// An index, with the line that it was written on.
struct At {
    int64_t index;
    Site site;
    template <class I>
    At(I i, const char* file = __builtin_FILE(), int line = __builtin_LINE()) : index((int64_t)i), site{file, line} {}
};

template <class T> struct Checked;

// What `p[i]` is: reading and writing are told apart by the conversion.
template <class T> struct Ref {
    using V = typename Plain<T>::type;
    T* at;
    const Region* region;
    Site site;

    V get() const {
        check(region, at, sizeof(T), alignof(T), false, site);
        return *at;
    }
    operator V() const { return get(); }
    const Ref& operator=(V v) const {
        check(region, at, sizeof(T), alignof(T), true, site);
        *at = v;
        return *this;
    }
    const Ref& operator=(const Ref& other) const { return *this = other.get(); }
    template <class U> const Ref& operator=(const Ref<U>& other) const { return *this = other.get(); }
    Ref(T* at, const Region* region, Site site) : at(at), region(region), site(site) {}
    Ref(const Ref&) = default;
    const Ref& operator+=(V v) const { return *this = (V)(get() + v); }
    const Ref& operator-=(V v) const { return *this = (V)(get() - v); }
    const Ref& operator*=(V v) const { return *this = (V)(get() * v); }
    const Ref& operator|=(V v) const { return *this = (V)(get() | v); }
    const Ref& operator&=(V v) const { return *this = (V)(get() & v); }
    Checked<T> operator&() const { return Checked<T>{at, region}; }
};

template <class T> struct Checked {
    T* at = nullptr;
    const Region* region = nullptr;

    Checked() = default;
    Checked(T* at, const Region* region) : at(at), region(region) {}
    Checked(decltype(nullptr)) {}
    operator Checked<const T>() const { return {at, region}; }
    explicit operator bool() const { return at != nullptr; }
    bool operator==(decltype(nullptr)) const { return at == nullptr; }
    bool operator!=(decltype(nullptr)) const { return at != nullptr; }

    Ref<T> operator[](At i) const {
        require(i.site);
        return {at + i.index, region, i.site};
    }
    Ref<T> operator*() const { return {at, region, {"a dereferenced pointer", 0}}; }
    Checked operator+(int64_t n) const { return {at + n, region}; }
    Checked operator-(int64_t n) const { return {at - n, region}; }
    Checked& operator+=(int64_t n) { return at += n, *this; }
    int64_t operator-(Checked other) const { return at - other.at; }

    void require(Site site) const {
        if (!region) [[unlikely]] emu_fail(site, "null pointer");
    }
    // The address, after a check of `bytes` from here on.
    T* checked(uint64_t bytes, uint64_t align, bool write, Site site) const {
        require(site);
        check(region, at, bytes, align, write, site);
        return at;
    }
};

// One template for each kind of parameter: how it is read from a launch.
template <class P> struct Param {
    static constexpr ParamInfo info{sizeof(P), 0};
    static P get(const void* arg, const Region*) {
        P value;
        memcpy((void*)&value, arg, sizeof value);
        return value;
    }
};
template <class T> struct Param<Checked<T>> {
    static constexpr ParamInfo info{8, 1};
    static Checked<T> get(const void* arg, const Region* region) {
        T* at;
        memcpy(&at, arg, sizeof at);
        return {at, region};
    }
};

}  // namespace emu
