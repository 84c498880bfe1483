//! Wherever a host nests the router, on whichever runtime, over whichever store, it behaves alike.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use durable_streams_server::{
    AcidBackend, AcidStorage, Config, Engine, InMemoryStorage, Storage, StorageMode, build_router,
};

use super::{config, host_runtimes, may_start_stores, send};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

/// Creates, appends, reads and forks below `root`, the path of streams as clients see it.
async fn speak(app: &Router, root: &str) {
    let path = format!("{root}/a%20b/c");
    let created = send(app, "PUT", &path, &[TEXT], "one ").await.expect(201);
    assert_eq!(created.header("location"), format!("http://example.org{path}"));
    send(app, "POST", &path, &[TEXT], "two").await.expect(204);
    assert_eq!(send(app, "GET", &path, &[], "").await.expect(200).body, "one two");

    let fork = format!("{root}/fork");
    send(app, "PUT", &fork, &[("Stream-Forked-From", &path)], "").await.expect(201);
    assert_eq!(send(app, "GET", &fork, &[], "").await.expect(200).body, "one two");

    let absent = format!("{root}/absent");
    let refused = send(app, "POST", &absent, &[TEXT], "x").await.expect(404);
    assert_eq!((refused.problem("code"), refused.problem("instance")), ("NOT_FOUND".to_owned(), absent));
}

fn store(config: &Config) -> Arc<InMemoryStorage> {
    Arc::new(InMemoryStorage::new(config).expect("threads can be started"))
}

#[test]
fn urls_are_those_of_the_client_wherever_the_router_is_nested() {
    let _stores = may_start_stores();
    let mounts = [
        ("", ""),
        ("/live", "/live"),
        ("/api/v2/streams", "/api/v2/streams"),
        ("/tenants/{tenant}/live", "/tenants/acme/live"),
    ];
    for runtime in host_runtimes() {
        for base in ["/v1/stream", "/", "/s/"] {
            for (mount, prefix) in mounts {
                let mut config = config();
                config.http.stream_base_path = base.to_owned();
                let config = config.validated().expect("the configuration is right");
                let streams = build_router(store(&config), &config);
                let app = match mount {
                    "" => Router::new().merge(streams),
                    mount => Router::new().nest(mount, streams),
                };
                let root = format!("{prefix}{}", base.trim_end_matches('/'));
                runtime.block_on(async {
                    speak(&app, &root).await;
                    send(&app, "GET", &format!("{prefix}/healthz"), &[], "").await.expect(200);
                    send(&app, "GET", &format!("{prefix}/readyz"), &[], "").await.expect(200);
                });
            }
        }
    }
}

#[test]
fn a_fork_source_is_named_with_the_path_that_the_router_is_nested_under() {
    let _stores = may_start_stores();
    let config = config();
    let app = Router::new().nest("/live", build_router(store(&config), &config));
    for runtime in host_runtimes() {
        runtime.block_on(async {
            send(&app, "PUT", "/live/v1/stream/a", &[TEXT], "a").await;
            for source in ["/v1/stream/a", "/other/v1/stream/a", "/live/a", "/live/v1/stream/"] {
                let path = "/live/v1/stream/fork";
                let refused = send(&app, "PUT", path, &[("Stream-Forked-From", source)], "").await;
                assert_eq!(refused.expect(404).problem("instance"), path, "{source}");
            }
        });
    }
}

#[test]
fn the_host_keeps_its_own_routes_and_fallback() {
    let _stores = may_start_stores();
    let config = config();
    let app = Router::new()
        .route("/hello", get(|| async { "hello" }))
        .nest("/live", build_router(store(&config), &config))
        .fallback(|| async { (axum::http::StatusCode::NOT_FOUND, "nothing of the host's") });
    for runtime in host_runtimes() {
        runtime.block_on(async {
            assert_eq!(send(&app, "GET", "/hello", &[], "").await.expect(200).body, "hello");
            let beside = send(&app, "GET", "/v1/stream/a", &[], "").await.expect(404);
            assert_eq!(beside.body, "nothing of the host's");
            let below = send(&app, "GET", "/live/elsewhere", &[], "").await.expect(404);
            assert_eq!(below.problem("instance"), "/live/elsewhere");
        });
    }
}

/// What a host writes that leaves the choice of the store to its caller.
fn generic_app<S: Storage>(storage: S, config: &Config) -> Router {
    build_router(Arc::new(storage), config)
}

#[test]
fn concrete_stores_and_trait_objects_are_served_alike() {
    let _stores = may_start_stores();
    let mut config = config();
    config.storage.acid_backend = AcidBackend::InMemory;
    let acid = || AcidStorage::open(&config).expect("a database in RAM can be opened");
    let by_mode = |mode| {
        let mut config = config.clone();
        config.storage.mode = mode;
        Engine::open(&config).expect("a database in RAM can be opened")
    };
    let trait_object: Arc<dyn Storage> = store(&config);
    let apps = [
        build_router(store(&config), &config),
        build_router(Arc::new(acid()), &config),
        build_router(trait_object, &config),
        build_router(Arc::new(by_mode(StorageMode::Memory)), &config),
        build_router(Arc::new(by_mode(StorageMode::Acid)), &config),
        generic_app(acid(), &config),
        generic_app(store(&config) as Arc<dyn Storage>, &config),
    ];
    for (runtime, root) in host_runtimes().iter().zip(["/v1/stream/first", "/v1/stream/second"]) {
        for app in &apps {
            runtime.block_on(speak(app, root));
        }
    }
}
