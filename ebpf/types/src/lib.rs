//! Events and map layouts shared by the kernel programs and user space: sized integers only, no padding
//! that is not named, sizes asserted at compile time.
#![no_std]
