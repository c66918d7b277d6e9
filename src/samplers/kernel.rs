//! Temporary root of the parsers until the seams exist.
mod device;
mod record;
mod signatures;
