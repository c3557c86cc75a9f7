//! Events of hosts and regions.
