//! Loopback, and the one interface that the config names by its MAC.

use std::fs;
use std::io::Error;
use std::path::Path;

use crate::config::Network;
use crate::sys;

pub fn raise_loopback() -> Result<(), String> {
    let raised = sys::network_control().and_then(|control| sys::set_interface_up(&control, "lo"));
    raised.map_err(|error| format!("loopback: {error}"))
}

pub fn configure(network: &Network) -> Result<(), String> {
    let name = interface(&network.mac).ok_or_else(|| format!("no interface with the MAC {}", network.mac))?;
    apply(network, &name).map_err(|error| format!("network {name}: {error}"))
}

fn apply(network: &Network, name: &str) -> Result<(), Error> {
    let control = sys::network_control()?;
    sys::set_interface_address(&control, name, network.ip, mask(network.prefix))?;
    sys::set_interface_up(&control, name)?;
    sys::add_default_route(&control, network.gateway)
}

fn interface(mac: &str) -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?;
    let mut names = interfaces.flatten().filter_map(|it| it.file_name().into_string().ok());
    names.find(|name| {
        let address = fs::read_to_string(Path::new("/sys/class/net").join(name).join("address"));
        address.map_or(false, |it| it.trim_end() == mac)
    })
}

/// Of a prefix of 1 to 32 bits.
fn mask(prefix: u32) -> [u8; 4] {
    (u32::MAX << (32 - prefix)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn masks() {
        assert_eq!(mask(1), [128, 0, 0, 0]);
        assert_eq!(mask(8), [255, 0, 0, 0]);
        assert_eq!(mask(24), [255, 255, 255, 0]);
        assert_eq!(mask(30), [255, 255, 255, 252]);
        assert_eq!(mask(32), [255; 4]);
    }
}
