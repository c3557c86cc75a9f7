//! The API in process: the real router over the real store, with a dispatch that keeps its
//! promises (stores, tells, relays) without a region behind it.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use fairlead_api::types::Permission;
use fairlead_api::{Backend, Options};
use fairlead_daemon::clock::Clock;
use fairlead_identity::token::{ApiToken, secret_hash};
use fairlead_protocol::{Container, HostId, HostInventory, HostPresence, InventoryPart};
use fairlead_store::Store;
use fairlead_store::hosts::HostRow;
use fairlead_store::tokens::ApiTokenRow;
use fairlead_webssh::Origins;
use fairlead_webssh::recording::file::Recordings;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::authority::CertificateAuthority;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::setup::Setup;

mod double;
mod access;
mod commands;
mod fleet;
mod live;
mod terminals;

use double::Double;

const NOW: i64 = 1_700_000_000_000_000;
const BOX: HostId = HostId::from_bytes([1; 16]);
const FAR: HostId = HostId::from_bytes([2; 16]);
const THEIRS: HostId = HostId::from_bytes([3; 16]);

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    clock: Clock,
    fleet: Arc<Fleet>,
    feed: Arc<Feed>,
    live: Arc<Live>,
    setup: Arc<Setup>,
    dispatch: Arc<Double>,
    backend: Arc<ControllerBackend>,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: Value,
    text: String,
}

fn desk(dir: &std::path::Path, clock: &Clock) -> Desk {
    let authority =
        CertificateAuthority::open(dir, "fairlead.internal", &[], clock.clone()).unwrap();
    let recordings = Recordings::open(&dir.join("recordings"), u64::MAX).unwrap();
    let origins = Origins::new(["https://fleet.example.com/"]);
    Desk::new(move || authority.signer(), origins, recordings)
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}

impl World {
    /// Two hosts of tenant `default` in two regions, one of tenant `theirs`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).unwrap();
        let clock = Clock::manual(NOW);
        let fleet = Arc::new(Fleet::new());
        let feed = Feed::open(store.clone(), clock.clone()).await.unwrap();
        let live = Arc::new(Live::new());
        let setup = Setup::new(store.clone(), clock.clone(), dir.path());
        let dispatch = Double::new(store.clone(), clock.clone(), Arc::clone(&live));
        let backend = ControllerBackend::new(Parts {
            store: store.clone(),
            fleet: Arc::clone(&fleet),
            dispatch: Arc::clone(&dispatch) as Arc<dyn Dispatching>,
            feed: Arc::clone(&feed),
            live: Arc::clone(&live),
            desk: desk(dir.path(), &clock),
            metrics: Arc::new(Metrics::new()),
            setup: Arc::clone(&setup),
            clock: clock.clone(),
            ca_hash: [9; 32],
            uplink_addresses: vec!["controller:7401".to_owned()],
            packages: crate::packages::Packages::new(&dir.path().join("packages"), || NOW),
            trusted: Vec::new(),
            public_url: "https://fleet.example.com/".to_owned(),
            web: Arc::new(crate::web_status::WebStatus::new(
                "sha256//AbC=".to_owned(),
                vec!["fleet.example.com".to_owned()],
                None,
            )),
            version: "1.2.3".to_owned(),
        });
        let router = fairlead_api::router(
            Arc::clone(&backend) as Arc<dyn Backend>,
            Options {
                random: fairlead_identity::random::bytes::<16>,
                shutdown: CancellationToken::new(),
                streams: tokio_util::task::TaskTracker::new(),
                streams_max: 8,
                followers_max: 12,
                event_streams_per_token_max: 8,
                watches_per_token_max: 8,
            },
        );
        let world = Self {
            _dir: dir,
            store,
            clock,
            fleet,
            feed,
            live,
            setup,
            dispatch,
            backend,
            router,
        };
        world
            .add_host(BOX, "box", "default", "here", &[("env", "prod")])
            .await;
        world
            .add_host(FAR, "far", "default", "there", &[("env", "test")])
            .await;
        world
            .add_host(THEIRS, "secret", "theirs", "elsewhere", &[])
            .await;
        world
    }

    async fn add_host(
        &self,
        id: HostId,
        name: &str,
        tenant: &str,
        region: &str,
        labels: &[(&str, &str)],
    ) {
        let row = HostRow {
            name: name.to_owned(),
            tenant: tenant.to_owned(),
            region: region.to_owned(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            enrolled_us: NOW,
            ..HostRow::default()
        };
        self.store
            .write(move |tx| {
                tx.insert_region(&row.region, &row.tenant, NOW)?;
                tx.insert_host(id, &row)
            })
            .await
            .unwrap();
        self.fleet.region_online(region, "server", "1", NOW);
        self.fleet.apply_presence(
            region,
            &HostPresence {
                host: id.to_wire(),
                state: "online".to_owned(),
                since_us: NOW,
                ..HostPresence::default()
            },
        );
        self.fleet.presence_complete(region);
    }

    fn show_containers(&self, host: HostId, containers: &[(&str, &str)]) {
        let upserts = containers
            .iter()
            .map(|(id, name)| Container {
                id: (*id).to_owned(),
                name: (*name).to_owned(),
                state: "running".to_owned(),
                ..Container::default()
            })
            .collect();
        let part = InventoryPart {
            full: true,
            last: true,
            upserts,
            as_of_us: NOW,
            ..InventoryPart::default()
        };
        self.fleet.apply_inventory(&HostInventory {
            host: host.to_wire(),
            part: Some(part),
        });
    }

    /// A token with those permissions and scope; its text.
    async fn token_of(&self, tenant: &str, permissions: &[Permission], scope: Value) -> String {
        let token = ApiToken::generate();
        let row = ApiTokenRow {
            id: token.id.clone(),
            tenant: tenant.to_owned(),
            name: "test".to_owned(),
            secret_hash: secret_hash(&token.secret),
            permissions: permissions.iter().map(|p| p.name().to_owned()).collect(),
            scope: scope.to_string(),
            created_us: NOW,
            ..ApiTokenRow::default()
        };
        self.store
            .write(move |tx| tx.insert_api_token(&row))
            .await
            .unwrap();
        token.to_string()
    }

    async fn admin(&self) -> String {
        self.token_of("default", &[Permission::Admin], json!({}))
            .await
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    async fn get(&self, token: &str, path: &str) -> Answer {
        self.send(request(Method::GET, token, path, None)).await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> Answer {
        self.send(request(Method::POST, token, path, Some(body)))
            .await
    }

    async fn delete(&self, token: &str, path: &str) -> Answer {
        self.send(request(Method::DELETE, token, path, None)).await
    }

    async fn audit_rows(&self) -> Vec<fairlead_store::audit::AuditRow> {
        let filter = fairlead_store::audit::AuditFilter {
            tenant: "default".to_owned(),
            before: None,
            limit: 1000,
        };
        self.store.read(move |tx| tx.audit(&filter)).await.unwrap()
    }
}

fn request(method: Method, token: &str, path: &str, body: Option<Value>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    match body {
        Some(body) => builder
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap(),
        None => builder.body(Body::empty()).unwrap(),
    }
}
