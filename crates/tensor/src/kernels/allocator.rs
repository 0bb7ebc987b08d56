//! What this crate asks of the C library's allocator.

/// See [`crate::memory::keep_freed_pages`].
pub(crate) fn keep_freed_pages() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt only sets parameters of the allocator; it takes plain integers.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0) == 1 && libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        false
    }
}

/// See [`crate::memory::give_back_freed_pages`].
pub(crate) fn give_back_freed_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim moves no allocation, and may be called from any thread.
        unsafe { libc::malloc_trim(0) };
    }
}
