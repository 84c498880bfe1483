//! Streams inside an axum application of one's own.
//!
//! ```sh
//! cargo run --example embed          # or with a port: cargo run --example embed -- 3000
//! curl http://127.0.0.1:3000/
//! curl -X PUT http://127.0.0.1:3000/api/streams/hello -H 'Content-Type: text/plain' -d 'hello, world'
//! curl -N 'http://127.0.0.1:3000/api/streams/hello?offset=-1&live=sse'
//! ```
//!
//! The port is the first argument, else the variable `PORT`, else 3000; with 0 the system chooses. Everything else is
//! configured like the server, so `DS_STORAGE__MODE=acid` keeps the streams on disk.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::get;
use durable_streams_server::{
    CancellationToken, Config, ConfigLoadOptions, Engine, Storage, build_router_with_ready,
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let mut config = Config::load(&ConfigLoadOptions::default())?;
    // Streams are to be right below the path that their router is nested under.
    config.http.stream_base_path = "/".to_owned();
    let config = config.validated()?;

    // Blocks while it recovers what is on disk. It has core threads of its own; this runtime only passes requests on.
    let storage = Arc::new(Engine::open(&config)?);
    let ready = Arc::new(AtomicBool::new(false));
    let shutdown = CancellationToken::new();
    let streams =
        build_router_with_ready(Arc::clone(&storage), &config, Arc::clone(&ready), shutdown.clone());
    let app = Router::new()
        .route("/", get(|| async { "streams are at /api/streams/<name>\n" }))
        .nest("/api/streams", streams);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    ready.store(true, Ordering::Release);
    axum::serve(listener, app).with_graceful_shutdown(ctrl_c(shutdown)).await?;

    storage.shutdown().await;
    println!("stopped");
    Ok(())
}

fn port() -> Result<u16, Box<dyn Error>> {
    let given = std::env::args().nth(1).or_else(|| std::env::var("PORT").ok());
    match given {
        Some(text) => text.parse().map_err(|_| format!("{text:?} is not a port").into()),
        None => Ok(3000),
    }
}

/// Returns on Ctrl-C. A graceful shutdown waits for all responses, and live ones would go on: the token ends them.
async fn ctrl_c(shutdown: CancellationToken) {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("cannot listen to signals: {error}");
    }
    shutdown.cancel();
}
