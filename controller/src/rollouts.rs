//! Rollouts of versions of the agent over hosts: what is decided (`decide`), pure; `backend::rollouts` asks for what
//! is decided and keeps it.

pub mod decide;
