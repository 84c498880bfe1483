//! Names of both families, unknown names, and what errors give away.

use std::path::PathBuf;
use std::time::Duration;

use durable_streams_server::config::{AcidBackend, Config, KEYS, StorageMode};

use super::{Case, env, file};

#[test]
fn names_of_the_0_3_family_load_from_files() {
    let config = file(
        r#"
        [server]
        bind_address = "0.0.0.0:4438"
        [transport]
        mode = "tls"
        [transport.http]
        versions = ["http1", "http2"]
        [transport.connection]
        long_poll_timeout_secs = 5
        sse_reconnect_interval_secs = 0
        [transport.tls]
        min_version = "1.2"
        max_version = "1.3"
        alpn_protocols = ["http/1.1", "h2"]
        cert_path = "cert.pem"
        key_path = "key.pem"
        [proxy]
        enabled = false
        forwarded_headers = "none"
        trusted_proxies = []
        [proxy.identity]
        mode = "none"
        [observability]
        rust_log = "debug"
        "#,
    )
    .load()
    .unwrap();
    assert_eq!(config.server.bind_address.port(), 4438);
    assert_eq!(config.server.long_poll_timeout, Duration::from_secs(5));
    assert_eq!(config.server.sse_reconnect_interval, None);
    let tls = config.tls.unwrap();
    assert_eq!((tls.cert_path, tls.key_path), (PathBuf::from("cert.pem"), PathBuf::from("key.pem")));
    assert_eq!(config.log.rust_log, "debug");
}

#[test]
fn names_of_both_families_load_from_variables() {
    let config = env(&[
        ("DS_TRANSPORT__CONNECTION__LONG_POLL_TIMEOUT_SECS", "5"),
        ("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "120"),
        ("DS_TLS__CERT_PATH", "cert.pem"),
        ("DS_TRANSPORT__TLS__KEY_PATH", "key.pem"),
        ("DS_TRANSPORT__MODE", "tls"),
        ("DS_TRANSPORT__HTTP__VERSIONS", "http1,http2"),
        ("DS_OBSERVABILITY__RUST_LOG", "debug"),
        ("DS_STORAGE__MODE", "redb"),
        ("DS_STORAGE__ACID_BACKEND", "memory"),
        ("DS_HTTP__ALLOW_WILDCARD_CORS", "true"),
    ])
    .load()
    .unwrap();
    assert_eq!(config.server.long_poll_timeout, Duration::from_secs(5));
    assert_eq!(config.server.sse_reconnect_interval, Some(Duration::from_secs(120)));
    assert!(config.tls.is_some());
    assert_eq!(config.log.rust_log, "debug");
    assert_eq!(config.storage.mode, StorageMode::Acid);
    assert_eq!(config.storage.acid_backend, AcidBackend::InMemory);
}

#[test]
fn a_0_3_name_wins_within_its_layer_and_loses_to_a_later_layer() {
    let both = "[server]\nlong_poll_timeout_secs = 1\n[transport.connection]\nlong_poll_timeout_secs = 2\n";
    assert_eq!(file(both).load().unwrap().server.long_poll_timeout, Duration::from_secs(2));
    let case = Case::new(&[("default.toml", both)], &[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "3")]);
    assert_eq!(case.load().unwrap().server.long_poll_timeout, Duration::from_secs(3));
}

#[test]
fn every_alias_sets_its_key_from_a_file_and_from_a_variable() {
    for key in KEYS {
        for alias in key.aliases() {
            let value = if alias.ends_with("_secs") { "7" } else { "warn" };
            let (section, leaf) = alias.rsplit_once('.').unwrap();
            let variable = format!("DS_{}", alias.to_uppercase().replace('.', "__"));
            let text = format!("[{section}]\n{leaf} = \"{value}\"\n");
            // One half of a pair that must be complete.
            let other = if alias.ends_with("cert_path") { "DS_TLS__KEY_PATH" } else { "DS_TLS__CERT_PATH" };
            let rest = if section.ends_with("tls") { vec![(other, "other")] } else { Vec::new() };
            let from_file = Case::new(&[("default.toml", &text)], &rest).load().unwrap();
            let from_variable = env(&[&rest[..], &[(&variable, value)]].concat()).load().unwrap();
            assert_eq!(from_file, from_variable, "{alias}");
            assert_eq!(key.value_in(&from_file).trim_matches('"'), value, "{alias}");
        }
    }
}

#[test]
fn a_0_3_key_that_would_mean_something_else_here_is_refused() {
    let table = [
        (
            "DS_PROXY__ENABLED",
            "true",
            "proxy.enabled = \"true\": must be false, for nothing else is supported yet",
        ),
        (
            "DS_TRANSPORT__TLS__MIN_VERSION",
            "1.3",
            "transport.tls.min_version = \"1.3\": must be 1.2, for nothing else is supported yet",
        ),
        (
            "DS_TRANSPORT__TLS__CLIENT_CA_PATH",
            "ca.pem",
            "transport.tls.client_ca_path = \"ca.pem\": is not supported yet",
        ),
        (
            "DS_TRANSPORT__TLS__ALPN_PROTOCOLS",
            "h2",
            "transport.tls.alpn_protocols = \"h2\": must name the same protocols as transport.http.versions",
        ),
        (
            "DS_TRANSPORT__MODE",
            "mtls",
            "transport.mode = \"mtls\": mtls is not supported yet; this version has http and tls",
        ),
    ];
    for (variable, value, expected) in table {
        assert_eq!(env(&[(variable, value)]).error(), format!("{variable}: {expected}"));
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let table = [
        ("[server]\nprot = 1\n", "server.prot = 1", "server.port"),
        ("[sever]\nport = 1\n", "sever.port = 1", "server.port"),
        ("port = 1\n", "port = 1", "server.port"),
        ("[server]\ncors_origins = \"*\"\n", "server.cors_origins = \"*\"", "http.cors_origins"),
        ("[limits]\nmax_stream_byte = 1\n", "limits.max_stream_byte = 1", "limits.max_stream_bytes"),
        ("[server.port]\nnumber = 1\n", "server.port.number = 1", "server.port"),
        ("[stroage]\n", "stroage = {}", "storage.mode"),
        ("[tls]\ncert_pth = \"a\"\n", "tls.cert_pth = \"a\"", "tls.cert_path"),
    ];
    for (text, written, nearest) in table {
        let expected = format!("default.toml: {written}: unknown key; the nearest known one is {nearest}");
        assert_eq!(file(text).error(), expected);
    }
}

#[test]
fn unknown_variables_are_refused_with_the_nearest_known_one() {
    let table = [
        ("DS_SERVER_PORT", "server_port", "DS_SERVER__PORT"),
        ("DS_SERVER__PROT", "server.prot", "DS_SERVER__PORT"),
        ("DS_PORT", "port", "DS_SERVER__PORT"),
        ("DS_STORAGE__DATADIR", "storage.datadir", "DS_STORAGE__DATA_DIR"),
        ("DS_Server__Port", "server.port", "DS_SERVER__PORT"),
        (
            "DS_TRANSPORT__CONNECTION__LONG_POLL_TIMEOUT",
            "transport.connection.long_poll_timeout",
            "DS_TRANSPORT__CONNECTION__LONG_POLL_TIMEOUT_SECS",
        ),
    ];
    for (variable, written, nearest) in table {
        let expected =
            format!("{variable}: {written} = \"1\": unknown key; the nearest known one is {nearest}");
        assert_eq!(env(&[(variable, "1")]).error(), expected);
    }
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [("PATH", "/bin"), ("DSN", "x"), ("ds_server__port", "1"), ("MY_DS_SERVER__PORT", "1")];
    assert_eq!(env(&others).load().unwrap(), Config::default());
}

#[test]
fn what_sounds_like_a_secret_is_masked_in_errors() {
    let text = env(&[("DS_AUTH__TOKEN", "s3cret")]).error();
    assert!(text.starts_with("DS_AUTH__TOKEN: auth.token = \"***\": unknown key"), "{text}");
    let text = env(&[("DS_HTTP__PUBLIC_ORIGIN", "https://user:s3cret@host")]).error();
    assert!(text.contains("\"https://***@host\"") && !text.contains("s3cret"), "{text}");
}

#[test]
fn an_error_stays_one_line_whatever_the_value() {
    let text = env(&[("DS_STORAGE__MODE", "a\nb\u{1b}[2J")]).error();
    assert_eq!(
        text,
        "DS_STORAGE__MODE: storage.mode = \"a\\u000Ab\\u001B[2J\": must be one of memory, file-fast, file-durable, acid"
    );
}
