//! Terminals whose session lives at a region's access server, as far as is known here: where browsers reach the
//! region, what is open there, what is to end there.
//!
//! Whose a terminal is comes from this controller's own store; of the region nothing is believed but counters.
//! While a region is cut off its sessions go on, and what was known last stays.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fairlead_protocol::{CommandId, EndTerminal, OpenTerminal, OpenTerminals};
use fairlead_webssh::message::End;
use fairlead_webssh::{Info, origin};

/// All regions.
#[derive(Default)]
pub(super) struct Regional(Mutex<HashMap<String, Side>>);

#[derive(Default)]
struct Side {
    /// Its address, also while it is cut off.
    at: Option<String>,
    is_attached: bool,
    /// Whether it has told what is open there since this controller started.
    has_told: bool,
    open: HashMap<CommandId, There>,
}

/// A terminal that is open at a region.
#[derive(Debug, Clone)]
pub(super) struct There {
    /// Whose it is, and where.
    pub(super) info: Info,
    /// What the region said of it last.
    pub(super) said: OpenTerminal,
    /// It is to end there, for this reason.
    pub(super) ending: Option<End>,
}

impl There {
    fn new(info: Info, said: OpenTerminal) -> Self {
        Self {
            info,
            said,
            ending: None,
        }
    }
}

impl Regional {
    fn sides(&self) -> MutexGuard<'_, HashMap<String, Side>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A region is connected; browsers reach it there, if anywhere.
    pub(super) fn attached(&self, region: &str, at: &str) {
        let address = origin::normal(at).filter(|origin| origin.starts_with("https://"));
        if address.is_none() && !at.is_empty() {
            tracing::warn!(region, "its address for terminals is no https address");
        }
        let mut sides = self.sides();
        let side = sides.entry(region.to_owned()).or_default();
        side.at = address;
        side.is_attached = true;
    }

    /// A region is cut off.
    pub(super) fn detached(&self, region: &str) {
        if let Some(side) = self.sides().get_mut(region) {
            side.is_attached = false;
        }
    }

    /// Where browsers reach a region that is connected, if they do.
    pub(super) fn address(&self, region: &str) -> Option<String> {
        let sides = self.sides();
        let side = sides.get(region).filter(|side| side.is_attached)?;
        side.at.clone()
    }

    /// Where browsers reach regions.
    pub(super) fn addresses(&self) -> Vec<String> {
        let sides = self.sides();
        let all: BTreeSet<String> = sides.values().filter_map(|side| side.at.clone()).collect();
        all.into_iter().collect()
    }

    /// A terminal begins at a region.
    pub(super) fn begins(&self, info: &Info, now_us: i64) {
        let said = OpenTerminal {
            session: info.session.to_wire(),
            started_us: now_us,
            typed_us: now_us,
            has_page: true,
            ..OpenTerminal::default()
        };
        let mut sides = self.sides();
        let side = sides.entry(info.region.clone()).or_default();
        side.open
            .insert(info.session, There::new(info.clone(), said));
    }

    /// What is open at a region, all of it. `whose` says it of those that are not known here; those of which
    /// nobody knows are left out. What is to end there and has not ended.
    pub(super) fn told(
        &self,
        region: &str,
        list: OpenTerminals,
        whose: impl Fn(CommandId) -> Option<Info>,
    ) -> Vec<EndTerminal> {
        let mut sides = self.sides();
        let side = sides.entry(region.to_owned()).or_default();
        side.has_told = true;
        let mut known = std::mem::take(&mut side.open);
        for said in list.open {
            let Ok(session) = CommandId::from_wire(&said.session) else {
                continue;
            };
            let there = match known.remove(&session) {
                Some(there) => Some(There { said, ..there }),
                None => whose(session).map(|info| There::new(info, said)),
            };
            side.open
                .extend(there.into_iter().map(|there| (session, there)));
        }
        side.open.values().filter_map(to_end).collect()
    }

    /// One has ended at its region.
    pub(super) fn ended(&self, region: &str, session: CommandId) {
        if let Some(side) = self.sides().get_mut(region) {
            side.open.remove(&session);
        }
    }

    /// Whether that region has not told yet what is open there.
    pub(super) fn is_untold(&self, region: &str) -> bool {
        self.sides().get(region).is_none_or(|side| !side.has_told)
    }

    /// One that is open, and where its region is reached.
    pub(super) fn find(&self, session: CommandId) -> Option<(There, Option<String>)> {
        let sides = self.sides();
        sides
            .values()
            .find_map(|side| Some((side.open.get(&session)?.clone(), side.at.clone())))
    }

    /// All that are open.
    pub(super) fn all(&self) -> Vec<There> {
        let sides = self.sides();
        sides
            .values()
            .flat_map(|side| side.open.values().cloned())
            .collect()
    }

    /// It is to end there; the first reason holds. What its region is told.
    pub(super) fn ends(&self, session: CommandId, why: End) -> Option<(String, EndTerminal)> {
        let mut sides = self.sides();
        let mut open = sides.values_mut().flat_map(|side| side.open.values_mut());
        let there = open.find(|there| there.info.session == session)?;
        there.ending.get_or_insert(why);
        Some((there.info.region.clone(), to_end(there)?))
    }
}

fn to_end(there: &There) -> Option<EndTerminal> {
    let why = there.ending.as_ref()?;
    Some(EndTerminal {
        session: there.info.session.to_wire(),
        code: why.code.clone(),
        message: why.message.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_protocol::HostId;

    fn info(n: u8) -> Info {
        Info {
            session: CommandId::from_bytes([n; 16]),
            user: "ada".to_owned(),
            token_id: "t".to_owned(),
            tenant: "default".to_owned(),
            region: "eu".to_owned(),
            host_id: HostId::from_bytes([9; 16]),
            host: "vm".to_owned(),
            container: "web".to_owned(),
            container_id: "c".to_owned(),
            exec_user: String::new(),
            size: (80, 25),
        }
    }

    fn list(of: &[u8]) -> OpenTerminals {
        let said = |n: &u8| OpenTerminal {
            session: CommandId::from_bytes([*n; 16]).to_wire(),
            output: 7,
            ..OpenTerminal::default()
        };
        OpenTerminals {
            open: of.iter().map(said).collect(),
        }
    }

    #[test]
    fn an_address_is_an_https_address_and_only_while_the_region_is_there() {
        let regional = Regional::default();
        assert_eq!(regional.address("eu"), None);
        regional.attached("eu", "http://eu.example.com");
        assert_eq!(regional.address("eu"), None);
        regional.attached("eu", "https://EU.example.com:443/");
        let address = Some("https://eu.example.com".to_owned());
        assert_eq!(regional.address("eu"), address);
        regional.detached("eu");
        assert_eq!(regional.address("eu"), None);
        assert_eq!(regional.addresses().len(), 1, "its sessions go on");
    }

    #[test]
    fn what_is_to_end_is_said_until_it_has_ended() {
        let regional = Regional::default();
        let one = info(1).session;
        regional.begins(&info(1), 5);
        let (region, said) = regional.ends(one, End::new("withdrawn", "x")).unwrap();
        assert_eq!((&region[..], &said.code[..]), ("eu", "withdrawn"));
        let (_, said) = regional.ends(one, End::new("revoked", "y")).unwrap();
        assert_eq!(said.code, "withdrawn", "the first reason holds");
        let none = |_| None;
        assert_eq!(regional.told("eu", list(&[1]), none).len(), 1);
        assert_eq!(regional.find(one).unwrap().0.said.output, 7);
        assert!(regional.told("eu", list(&[]), none).is_empty());
        assert!(regional.find(one).is_none());
    }

    #[test]
    fn a_region_makes_no_terminals_up() {
        let regional = Regional::default();
        assert!(regional.is_untold("eu"));
        let theirs = |session| (session == info(2).session).then(|| info(2));
        regional.told("eu", list(&[1, 2]), theirs);
        assert!(!regional.is_untold("eu"));
        let all = regional.all();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].info.session, info(2).session);
    }
}
