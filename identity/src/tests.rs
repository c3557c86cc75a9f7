//! Chains, roles and signatures together: what is believed, and every way of not being believed that
//! the security page names (S10 to S13).

use std::time::Duration;

use fairlead_protocol::{
    CloneGrant, Command, CommandKeys, HostId, Message, SignedCloneGrant, SignedCommand,
    SignedTicket, Ticket,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::{Authority, LeafUse, PrivateKey, RequestedKey};
use crate::chain::{ChainError, Root, Usage};
use crate::roles::Role;
use crate::signing::{Keys, SignatureError, Signer, Verifier};
use crate::ticket::{self, TicketError};

const NOW_S: i64 = 1_800_000_000;
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
}

fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

struct Installation {
    root: Authority,
    servers: Authority,
    sz_agents: Authority,
    command_keys: Authority,
}

impl Installation {
    fn new(domain: &str) -> Self {
        let root = Authority::new_root(domain, NOW_S).unwrap();
        let under = |role| root.new_intermediate(&role, NOW_S).unwrap();
        Self {
            servers: under(Role::ServersCa),
            sz_agents: under(Role::AgentsCa {
                region: "sz".into(),
            }),
            command_keys: under(Role::CommandKeysCa),
            root,
        }
    }

    fn believed(&self) -> Root {
        Root::from_der(self.root.chain()[0].clone()).unwrap()
    }
}

fn leaf(authority: &Authority, role: &Role, usage: LeafUse) -> Vec<CertificateDer<'static>> {
    let key = PrivateKey::generate().unwrap();
    authority
        .certify_own(&key, role, usage, &[], (NOW_S, WEEK))
        .unwrap()
        .chain
}

fn agent(n: u8) -> Role {
    Role::Agent {
        region: "sz".into(),
        host: host(n),
    }
}

#[test]
fn a_good_chain_says_who_it_is() {
    let installation = Installation::new("a.example");
    let chain = leaf(&installation.sz_agents, &agent(1), LeafUse::Client);
    let identity = installation
        .believed()
        .identify(&chain, Usage::Client, at(NOW_S))
        .unwrap();
    assert_eq!(identity.role, agent(1));
    assert_eq!(identity.not_after_s, NOW_S + 7 * 24 * 3600);
}

#[test]
fn s10_a_certificate_of_another_installation_is_refused_even_with_the_right_names() {
    let (ours, theirs) = (
        Installation::new("a.example"),
        Installation::new("a.example"),
    );
    let chain = leaf(&theirs.servers, &Role::Controller, LeafUse::Server);
    let error = ours
        .believed()
        .identify(&chain, Usage::Server, at(NOW_S))
        .unwrap_err();
    assert!(matches!(error, ChainError::Invalid(_)), "{error}");
}

#[test]
fn s10_a_self_signed_leaf_is_refused() {
    let ours = Installation::new("a.example");
    let fake = Authority::new_root("a.example", NOW_S).unwrap();
    let chain = leaf(&fake, &Role::Controller, LeafUse::Server);
    ours.believed()
        .identify(&chain, Usage::Server, at(NOW_S))
        .unwrap_err();
}

#[test]
fn s12_no_intermediate_can_certify_what_is_not_its_own() {
    let ours = Installation::new("a.example");
    let root = ours.believed();
    let elsewhere = Role::Agent {
        region: "hz".into(),
        host: host(1),
    };
    let attempts: [(&Authority, Role, LeafUse, Usage); 4] = [
        (
            &ours.sz_agents,
            Role::Controller,
            LeafUse::Both,
            Usage::Server,
        ),
        (&ours.sz_agents, elsewhere, LeafUse::Client, Usage::Client),
        (
            &ours.sz_agents,
            Role::AccessServer {
                region: "sz".into(),
                name: "a1".into(),
            },
            LeafUse::Both,
            Usage::Server,
        ),
        (
            &ours.sz_agents,
            Role::CommandKey,
            LeafUse::CommandSigning,
            Usage::CommandSigning,
        ),
    ];
    for (authority, role, made_for, usage) in attempts {
        let chain = leaf(authority, &role, made_for);
        let error = root.identify(&chain, usage, at(NOW_S)).unwrap_err();
        assert!(
            matches!(error, ChainError::WrongIssuer { .. }),
            "{role:?}: {error}"
        );
    }
}

#[test]
fn s12_a_leaf_serves_only_what_it_was_made_for() {
    let ours = Installation::new("a.example");
    let chain = leaf(&ours.sz_agents, &agent(1), LeafUse::Client);
    for usage in [Usage::Server, Usage::CommandSigning] {
        ours.believed()
            .identify(&chain, usage, at(NOW_S))
            .unwrap_err();
    }
}

#[test]
fn a_region_cannot_make_intermediates_of_its_own() {
    let ours = Installation::new("a.example");
    let forged = ours
        .sz_agents
        .new_intermediate(&Role::ServersCa, NOW_S)
        .unwrap();
    let chain = leaf(&forged, &Role::Controller, LeafUse::Server);
    ours.believed()
        .identify(&chain, Usage::Server, at(NOW_S))
        .unwrap_err();
}

#[test]
fn an_expired_certificate_is_believed_within_the_grace_only() {
    let ours = Installation::new("a.example");
    let chain = leaf(&ours.sz_agents, &agent(1), LeafUse::Client);
    let root = ours.believed();
    let later = at(NOW_S + 8 * 24 * 3600);
    let error = root.identify(&chain, Usage::Client, later).unwrap_err();
    assert!(matches!(error, ChainError::Expired(_)), "{error}");
    let ninety_days = Duration::from_secs(90 * 24 * 3600);
    let (_, expired) = root
        .identify_with_grace(&chain, Usage::Client, later, ninety_days)
        .unwrap();
    assert!(expired);
    let much_later = at(NOW_S + 98 * 24 * 3600);
    root.identify_with_grace(&chain, Usage::Client, much_later, ninety_days)
        .unwrap_err();
}

#[test]
fn s13_of_a_request_only_the_key_counts_and_it_must_be_the_askers() {
    let key = PrivateKey::generate().unwrap();
    let request = key.request().unwrap();
    assert_eq!(
        RequestedKey::from_request(&request).unwrap().hash(),
        key.public_hash()
    );
    let mut forged = request.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(
        RequestedKey::from_request(&forged).is_err(),
        "the signature must fit"
    );
    assert!(RequestedKey::from_request(b"rubbish").is_err());
}

#[test]
fn the_root_is_found_by_its_hash_and_by_nothing_else() {
    let ours = Installation::new("a.example");
    let shown = leaf(&ours.servers, &Role::Controller, LeafUse::Server);
    let hash = ours.believed().hash();
    assert_eq!(Root::by_hash(&shown, &hash).unwrap().hash(), hash);
    let error = Root::by_hash(&shown, &[0; 32]).err().unwrap();
    assert!(matches!(error, ChainError::OtherRoot { .. }), "{error}");
}

struct Signing {
    installation: Installation,
    signer: Signer,
    verifier: Verifier,
}

fn signing() -> Signing {
    let installation = Installation::new("a.example");
    let signer = signer(&installation.command_keys, &Role::CommandKey);
    let mut verifier = Verifier::new(installation.believed(), host(1), "ours");
    let keys = CommandKeys {
        chains: vec![signer.chain()],
    };
    assert!(verifier.learn(&keys, at(NOW_S)).is_empty());
    Signing {
        installation,
        signer,
        verifier,
    }
}

fn signer(authority: &Authority, role: &Role) -> Signer {
    let key = PrivateKey::generate_ed25519().unwrap();
    let made = authority
        .certify_own(&key, role, LeafUse::CommandSigning, &[], (NOW_S, WEEK))
        .unwrap();
    Signer::new(&key.to_der(), &made.chain).unwrap()
}

fn command_for(n: u8) -> Command {
    Command {
        host: host(n).to_wire(),
        tenant: "ours".into(),
        issuer: "admin".into(),
        ..Command::default()
    }
}

#[test]
fn a_signed_command_is_believed_as_it_was_signed() {
    let s = signing();
    let signed = s.signer.sign(&command_for(1));
    assert_eq!(
        s.verifier.verify(&signed, at(NOW_S)).unwrap(),
        command_for(1)
    );
}

#[test]
fn s11_who_knows_no_key_believes_nobody_and_no_root_is_no_trust() {
    let s = signing();
    let signed = s.signer.sign(&command_for(1));
    let mut ignorant = Verifier::new(s.installation.believed(), host(1), "ours");
    assert!(
        ignorant
            .learn(&CommandKeys::default(), at(NOW_S))
            .is_empty()
    );
    let believed = ignorant.verify(&signed, at(NOW_S));
    assert_eq!(believed, Err(SignatureError::UnknownKey));
    let empty = CommandKeys {
        chains: vec![fairlead_protocol::Chain::default()],
    };
    assert_eq!(ignorant.learn(&empty, at(NOW_S)).len(), 1);
    let believed = ignorant.verify(&signed, at(NOW_S));
    assert_eq!(believed, Err(SignatureError::UnknownKey));
    Root::from_der(Vec::new().into()).err().unwrap();
    let nobody = s
        .installation
        .believed()
        .identify(&[], Usage::Client, at(NOW_S));
    assert!(nobody.is_err(), "no certificate is nobody's");
}

#[test]
fn a_relay_can_neither_alter_nor_redirect_nor_forge() {
    let s = signing();
    let signed = s.signer.sign(&command_for(1));
    for index in 0..signed.command.len() {
        let mut bytes = signed.command.to_vec();
        bytes[index] ^= 1;
        let altered = SignedCommand {
            command: bytes.into(),
            ..signed.clone()
        };
        assert_eq!(
            s.verifier.verify(&altered, at(NOW_S)),
            Err(SignatureError::Wrong)
        );
    }
    let for_another = s.signer.sign(&command_for(2));
    assert_eq!(
        s.verifier.verify(&for_another, at(NOW_S)),
        Err(SignatureError::OtherHost)
    );
    let unknown = signer(&s.installation.command_keys, &Role::CommandKey).sign(&command_for(1));
    assert_eq!(
        s.verifier.verify(&unknown, at(NOW_S)),
        Err(SignatureError::UnknownKey)
    );
}

#[test]
fn a_relay_cannot_grant_a_clone_what_the_controller_did_not() {
    let s = signing();
    let grant = |of: u8| CloneGrant {
        of: host(of).to_wire(),
        host: host(9).to_wire(),
        key_hash: vec![7; 32].into(),
    };
    let signed = s.signer.sign_grant(&grant(1));
    assert_eq!(
        s.verifier.verify_grant(&signed, at(NOW_S)).unwrap(),
        grant(1)
    );
    for index in 0..signed.grant.len() {
        let mut bytes = signed.grant.to_vec();
        bytes[index] ^= 1;
        let altered = SignedCloneGrant {
            grant: bytes.into(),
            ..signed.clone()
        };
        let judged = s.verifier.verify_grant(&altered, at(NOW_S));
        assert_eq!(judged, Err(SignatureError::Wrong));
    }
    let for_another = s.signer.sign_grant(&grant(2));
    let judged = s.verifier.verify_grant(&for_another, at(NOW_S));
    assert_eq!(judged, Err(SignatureError::OtherHost));
    let forged = signer(&s.installation.sz_agents, &Role::CommandKey).sign_grant(&grant(1));
    let judged = s.verifier.verify_grant(&forged, at(NOW_S));
    assert_eq!(judged, Err(SignatureError::UnknownKey));
    // What was signed as the one is not the other.
    let as_command = SignedCommand {
        command: signed.grant.clone(),
        key_id: signed.key_id.clone(),
        signature: signed.signature.clone(),
    };
    let judged = s.verifier.verify(&as_command, at(NOW_S));
    assert_eq!(judged, Err(SignatureError::Wrong));
    let command = s.signer.sign(&command_for(1));
    let as_grant = SignedCloneGrant {
        grant: command.command,
        key_id: command.key_id,
        signature: command.signature,
    };
    let judged = s.verifier.verify_grant(&as_grant, at(NOW_S));
    assert_eq!(judged, Err(SignatureError::Wrong));
}

#[test]
fn a_relay_cannot_introduce_a_key_of_its_own() {
    let mut s = signing();
    // It holds the region's CA for agents, which may not certify command keys.
    let forged = signer(&s.installation.sz_agents, &Role::CommandKey);
    let keys = CommandKeys {
        chains: vec![forged.chain()],
    };
    assert_eq!(s.verifier.learn(&keys, at(NOW_S)).len(), 1);
    let signed = forged.sign(&command_for(1));
    assert_eq!(
        s.verifier.verify(&signed, at(NOW_S)),
        Err(SignatureError::UnknownKey)
    );
}

#[test]
fn a_key_whose_certificate_is_over_signs_nothing_any_more() {
    let s = signing();
    let signed = s.signer.sign(&command_for(1));
    let later = at(NOW_S + 8 * 24 * 3600);
    let error = s.verifier.verify(&signed, later).unwrap_err();
    assert!(matches!(error, SignatureError::KeyNotValid(_)), "{error}");
}

#[test]
fn clocks_may_be_a_little_apart() {
    let mut s = signing();
    let signed = s.signer.sign(&command_for(1));
    let keys = CommandKeys {
        chains: vec![s.signer.chain()],
    };
    for now in [NOW_S - 60, NOW_S + 7 * 24 * 3600 + 60] {
        assert_eq!(s.verifier.learn(&keys, at(now)), []);
        assert!(s.verifier.verify(&signed, at(now)).is_ok());
    }
    for now in [NOW_S - 2 * 24 * 3600, NOW_S + 7 * 24 * 3600 + 2 * 3600] {
        assert_eq!(s.verifier.learn(&keys, at(now)).len(), 1, "{now}");
    }
}

#[test]
fn another_tenants_command_is_refused_as_another_hosts_is() {
    let s = signing();
    let mut command = command_for(1);
    command.tenant = "theirs".into();
    let signed = s.signer.sign(&command);
    assert_eq!(
        s.verifier.verify(&signed, at(NOW_S)),
        Err(SignatureError::OtherTenant)
    );
    let any = Verifier::new(s.installation.believed(), host(1), "");
    assert_eq!(
        any.verify(&signed, at(NOW_S)),
        Err(SignatureError::UnknownKey)
    );
}

#[test]
fn a_new_key_is_learnt_whatever_was_learnt_before() {
    let mut s = signing();
    let first = s.signer.sign(&command_for(1));
    let mut last = None;
    for n in 1..=40 {
        let key = PrivateKey::generate_ed25519().unwrap();
        let made = s
            .installation
            .command_keys
            .certify_own(
                &key,
                &Role::CommandKey,
                LeafUse::CommandSigning,
                &[],
                (NOW_S + n * 60, WEEK),
            )
            .unwrap();
        let signer = Signer::new(&key.to_der(), &made.chain).unwrap();
        let keys = CommandKeys {
            chains: vec![signer.chain()],
        };
        assert_eq!(s.verifier.learn(&keys, at(NOW_S)), []);
        last = Some(signer);
    }
    let signed = last.unwrap().sign(&command_for(1));
    assert!(s.verifier.verify(&signed, at(NOW_S)).is_ok());
    assert_eq!(
        s.verifier.verify(&first, at(NOW_S)),
        Err(SignatureError::UnknownKey),
        "the one that ends first made room"
    );
}

fn a_ticket() -> Ticket {
    Ticket {
        nonce: vec![7; ticket::NONCE_BYTES].into(),
        session: vec![8; 16].into(),
        token_id: "t".to_owned(),
        region: "sz".to_owned(),
        not_after_us: NOW_S * 1_000_000 + 30_000_000,
        ..Ticket::default()
    }
}

#[test]
fn s02_a_ticket_is_read_by_its_maker_and_by_who_knows_the_makers_certificate() {
    let s = signing();
    let text = ticket::write(&s.signer, &a_ticket());
    let now_us = NOW_S * 1_000_000;
    let mut keys = Keys::new(s.installation.believed());
    let unknown = ticket::read_known(&keys, &text, now_us);
    assert_eq!(unknown, Err(TicketError::Wrong), "no key is known yet");
    let told = CommandKeys {
        chains: vec![s.signer.chain()],
    };
    assert!(keys.learn(&told, at(NOW_S)).is_empty());
    for read in [
        ticket::read(&s.signer, &text, now_us),
        ticket::read_known(&keys, &text, now_us),
        // Clocks of two servers are never quite the same.
        ticket::read_known(&keys, &text, now_us - 4_000_000),
    ] {
        assert_eq!(read, Ok(a_ticket()));
    }
    let late = now_us + 30_000_001;
    assert_eq!(
        ticket::read_known(&keys, &text, late),
        Err(TicketError::Expired)
    );
    let early = now_us - 6_000_000;
    assert_eq!(
        ticket::read_known(&keys, &text, early),
        Err(TicketError::Wrong)
    );
    // One of another installation's key, and one of a region's own making.
    for other in [
        signer(
            &Installation::new("b.example").command_keys,
            &Role::CommandKey,
        ),
        signer(&s.installation.sz_agents, &Role::CommandKey),
    ] {
        let text = ticket::write(&other, &a_ticket());
        assert_eq!(
            ticket::read_known(&keys, &text, now_us),
            Err(TicketError::Wrong)
        );
    }
    // What was signed as a command is no ticket.
    let signed = s.signer.sign(&command_for(1));
    let as_ticket = SignedTicket {
        ticket: signed.command,
        key_id: signed.key_id,
        signature: signed.signature,
    };
    use base64::Engine;
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(as_ticket.encode_to_vec());
    assert_eq!(
        ticket::read_known(&keys, &text, now_us),
        Err(TicketError::Wrong)
    );
}
