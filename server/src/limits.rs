//! How many connections there may be, and which are open.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

/// The most connections of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub total: u32,
    pub per_address: u32,
    /// Connections that have not shown yet who they are.
    pub unauthenticated: u32,
}

/// Counts what is open.
#[derive(Debug)]
pub struct Doorman {
    limits: Limits,
    total: AtomicU32,
    unauthenticated: AtomicU32,
    by_address: DashMap<IpAddr, u32>,
}

/// One open connection; dropping it makes room.
#[derive(Debug)]
pub struct Permit {
    doorman: Arc<Doorman>,
    address: IpAddr,
    authenticated: bool,
}

impl Doorman {
    pub fn new(limits: Limits) -> Arc<Doorman> {
        let (total, unauthenticated) = (AtomicU32::new(0), AtomicU32::new(0));
        Arc::new(Doorman { limits, total, unauthenticated, by_address: DashMap::new() })
    }

    /// Lets a connection in, or says which limit is reached.
    pub fn admit(self: &Arc<Doorman>, address: IpAddr) -> Result<Permit, &'static str> {
        if self.total.load(Ordering::Relaxed) >= self.limits.total {
            return Err("dsync_max_connections is reached");
        }
        if self.unauthenticated.load(Ordering::Relaxed) >= self.limits.unauthenticated {
            return Err("dsync_max_unauthenticated is reached");
        }
        {
            let mut count = self.by_address.entry(address).or_insert(0);
            if *count >= self.limits.per_address {
                return Err("dsync_max_connections_per_ip is reached");
            }
            *count += 1;
        }
        self.total.fetch_add(1, Ordering::Relaxed);
        self.unauthenticated.fetch_add(1, Ordering::Relaxed);
        Ok(Permit { doorman: self.clone(), address, authenticated: false })
    }

    /// Connections that are open.
    pub fn open(&self) -> u32 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// The client has shown who it is.
    pub fn authenticated(&mut self) {
        if !self.authenticated {
            self.authenticated = true;
            self.doorman.unauthenticated.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.authenticated();
        self.doorman.total.fetch_sub(1, Ordering::Relaxed);
        if let Some(mut count) = self.doorman.by_address.get_mut(&self.address) {
            *count -= 1;
        }
        self.doorman.by_address.remove_if(&self.address, |_, count| *count == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_and_lets_go() {
        let doorman = Doorman::new(Limits { total: 3, per_address: 2, unauthenticated: 2 });
        let address = |n: u8| IpAddr::from([127, 0, 0, n]);
        let mut one = doorman.admit(address(1)).unwrap();
        let _two = doorman.admit(address(1)).unwrap();
        assert_eq!(doorman.admit(address(2)).unwrap_err(), "dsync_max_unauthenticated is reached");
        one.authenticated();
        assert_eq!(doorman.admit(address(1)).unwrap_err(), "dsync_max_connections_per_ip is reached");
        let mut three = doorman.admit(address(2)).unwrap();
        three.authenticated();
        assert_eq!(doorman.admit(address(3)).unwrap_err(), "dsync_max_connections is reached");
        drop((one, three));
        assert_eq!(doorman.open(), 1);
        assert!(doorman.admit(address(1)).is_ok());
    }
}
