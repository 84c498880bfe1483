//! The rule of each key, and of keys that depend on each other.

use std::time::Duration;

use durable_streams_server::config::{Config, CorsOrigins, KEYS, LogFormat, Range, StorageMode};

use super::{Case, env, file, key};

/// What must be set beside a key for its smallest or largest value to be possible.
fn companions(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "limits.max_body_bytes" => {
            &[("DS_LIMITS__MAX_BUFFERED_BODY_BYTES", "1GiB"), ("DS_LIMITS__MAX_STAGED_BYTES", "1GiB")]
        }
        "limits.max_buffered_body_bytes" | "limits.max_staged_bytes" => &[("DS_LIMITS__MAX_BODY_BYTES", "1")],
        "limits.max_read_buffer_bytes" => &[("DS_LIMITS__READ_PAGE_BYTES", "1")],
        "tls.handshake_timeout_secs" => &[("DS_TLS__CERT_PATH", "c"), ("DS_TLS__KEY_PATH", "k")],
        _ => &[],
    }
}

#[test]
fn every_number_is_taken_at_its_bounds_and_refused_beyond_them() {
    let mut checked = 0;
    for key in KEYS {
        let (right, wrong) = match key.range() {
            Some(Range::Whole { min, max }) => {
                let below = i128::from(min) - 1;
                let above = i128::from(max) + 1;
                (
                    vec![min.to_string(), max.to_string()],
                    vec![below.to_string(), above.to_string(), format!("{min}.5")],
                )
            }
            Some(Range::Seconds { min, max }) => (
                vec![min.to_string(), max.to_string()],
                vec![(min - 0.0001).to_string(), (max + 0.001).to_string(), "NaN".to_owned()],
            ),
            _ => continue,
        };
        let variable = key.env_name();
        for value in right {
            let all = [companions(key.name()), &[(&variable, &value)]].concat();
            let config = env(&all).load().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(key.value_in(&config), value, "{variable}");
        }
        for value in wrong.into_iter().chain(["many".to_owned(), "1 MB?".to_owned()]) {
            let all = [companions(key.name()), &[(&variable, &value)]].concat();
            let expected = format!("{variable}: {} = \"{value}\": {}", key.name(), key.rule());
            assert_eq!(env(&all).error(), expected.replace("; empty = not set", ""));
        }
        checked += 1;
    }
    assert!(checked >= 25, "only {checked} keys have a range");
}

#[test]
fn numbers_of_a_wrong_type_are_refused() {
    let text = file("[limits]\nmax_streams = true\n").error();
    assert_eq!(
        text,
        format!("default.toml: limits.max_streams = true: {}", key("limits.max_streams").rule())
    );
    let text = file("[limits]\nmax_streams = [1, \"a\"]\n").error();
    assert!(text.starts_with("default.toml: limits.max_streams = [1, \"a\"]: must be"), "{text}");
    let text = file("[storage]\nmode = 1\n").error();
    assert_eq!(text, "default.toml: storage.mode = 1: must be one of memory, file-fast, file-durable, acid");
}

#[test]
fn sizes_may_have_a_unit() {
    let table = [
        ("1kB", 1_000),
        ("3 KiB", 3 << 10),
        ("16MiB", 16 << 20),
        ("2GB", 2_000_000_000),
        ("1TiB", 1 << 40),
        ("7B", 7),
    ];
    for (text, bytes) in table {
        let limits = env(&[("DS_LIMITS__MAX_MEMORY_BYTES", text)]).load().unwrap().limits;
        assert_eq!(limits.max_memory_bytes, bytes, "{text}");
    }
    for wrong in ["16M", "1.5MiB", "MiB", "-1MiB", "99999999999TiB", "16mib"] {
        env(&[("DS_LIMITS__MAX_MEMORY_BYTES", wrong)]).load().unwrap_err();
    }
}

#[test]
fn seconds_may_have_fractions_in_files_and_variables() {
    let from_file = file("[server]\nlong_poll_timeout_secs = 0.5\n").load().unwrap();
    let from_variable = env(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.5")]).load().unwrap();
    assert_eq!(from_file.server.long_poll_timeout, Duration::from_millis(500));
    assert_eq!(from_file, from_variable);
}

#[test]
fn zero_turns_reconnects_and_heartbeats_off() {
    let server =
        file("[server]\nsse_reconnect_interval_secs = 0\nsse_heartbeat_secs = 0.0\n").load().unwrap().server;
    assert_eq!((server.sse_reconnect_interval, server.sse_heartbeat), (None, None));
    env(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0")]).load().unwrap_err();
}

#[test]
fn the_limit_of_a_stream_follows_the_mode_unless_it_is_set() {
    let limit = |env_: &[(&str, &str)]| env(env_).load().unwrap().limits.max_stream_bytes;
    let acid = ("DS_STORAGE__MODE", "acid");
    assert_eq!(limit(&[]), Some(10 << 20));
    assert_eq!(limit(&[acid]), None);
    assert_eq!(limit(&[acid, ("DS_LIMITS__MAX_STREAM_BYTES", "5")]), Some(5));
    assert_eq!(limit(&[("DS_LIMITS__MAX_STREAM_BYTES", "unlimited")]), None);
    assert_eq!(Config::with_mode(StorageMode::Acid), env(&[acid]).load().unwrap());
}

#[test]
fn the_empty_string_takes_an_optional_value_back() {
    let files =
        [("default.toml", "[http]\npublic_origin = \"https://a\"\n[storage]\nacid_shard_count = 4\n")];
    let empty = [("DS_HTTP__PUBLIC_ORIGIN", ""), ("DS_STORAGE__ACID_SHARD_COUNT", "")];
    let config = Case::new(&files, &empty).load().unwrap();
    assert_eq!((config.http.public_origin, config.storage.acid_shard_count), (None, None));
    let text = env(&[("DS_STORAGE__MODE", "")]).error();
    assert_eq!(
        text,
        "DS_STORAGE__MODE: storage.mode = \"\": must be one of memory, file-fast, file-durable, acid"
    );
}

#[test]
fn an_overridden_value_does_not_matter() {
    let files = [("default.toml", "[storage]\nmode = \"file-durable\"\n")];
    let case = Case::new(&files, &[("DS_STORAGE__MODE", "acid")]);
    assert_eq!(case.load().unwrap().storage.mode, StorageMode::Acid);
}

#[test]
fn the_file_modes_have_the_spellings_of_other_servers_too() {
    let modes = [
        ("file-fast", StorageMode::FileFast),
        ("fast", StorageMode::FileFast),
        ("file-durable", StorageMode::FileDurable),
        ("file", StorageMode::FileDurable),
        ("durable", StorageMode::FileDurable),
    ];
    for (name, mode) in modes {
        assert_eq!(env(&[("DS_STORAGE__MODE", name)]).load().unwrap().storage.mode, mode);
    }
}

#[test]
fn base_paths_are_normalised_and_checked() {
    let table =
        [("/", ""), ("/v1/stream", "/v1/stream"), ("/a/", "/a"), ("/a-b_c.d~e@f/G", "/a-b_c.d~e@f/G")];
    for (text, path) in table {
        assert_eq!(env(&[("DS_HTTP__STREAM_BASE_PATH", text)]).load().unwrap().http.stream_base_path, path);
    }
    let wrong = [
        "",
        "a",
        "//",
        "/a//b",
        "/a//",
        "/a?b",
        "/a#b",
        "/a b",
        "/{a}",
        "/*a",
        "/:a",
        "/a%20",
        "/ä",
        "/.",
        "/a/..",
        "/healthz",
        "/readyz/a",
    ];
    for text in wrong {
        let error = env(&[("DS_HTTP__STREAM_BASE_PATH", text)]).error();
        assert!(error.contains("must be a path that begins with /"), "{error}");
    }
}

#[test]
fn public_origins_are_normalised_and_checked() {
    let table = [
        ("https://Streams.Example.com", "https://streams.example.com"),
        ("https://a:8443/", "https://a:8443"),
        ("http://[::1]:80", "http://[::1]:80"),
    ];
    for (text, origin) in table {
        let http = env(&[("DS_HTTP__PUBLIC_ORIGIN", text)]).load().unwrap().http;
        assert_eq!(http.public_origin.as_deref(), Some(origin));
    }
    for wrong in [
        "a",
        "https://",
        "https://a/b",
        "https://a?b",
        "https://a#b",
        "ftp://a",
        "https://u@a",
        "https://a:",
        "https://a:0",
        "https://a:65536",
        "https://a b",
        "//a",
    ] {
        let error = env(&[("DS_HTTP__PUBLIC_ORIGIN", wrong)]).error();
        assert!(error.contains("must be http://host[:port] or https://host[:port]"), "{error}");
    }
}

#[test]
fn cors_origins_are_a_star_or_a_list() {
    let list =
        |origins: &[&str]| CorsOrigins::List(origins.iter().map(|&origin| origin.to_owned()).collect());
    let table = [
        ("*", CorsOrigins::Any),
        ("https://a", list(&["https://a"])),
        ("https://a, http://b:8080", list(&["https://a", "http://b:8080"])),
        ("HTTPS://A:443/,http://b:80", list(&["https://a", "http://b"])),
        ("capacitor://localhost", list(&["capacitor://localhost"])),
    ];
    for (text, origins) in table {
        assert_eq!(env(&[("DS_HTTP__CORS_ORIGINS", text)]).load().unwrap().http.cors_origins, origins);
    }
    let config = file("[http]\ncors_origins = [\"https://a\", \"https://b\"]\n").load().unwrap();
    assert_eq!(config.http.cors_origins, list(&["https://a", "https://b"]));
    for wrong in ["", "*,https://a", "https://a,", "a", "https://a/b", "null", "https://*.example.com/"] {
        let error = env(&[("DS_HTTP__CORS_ORIGINS", wrong)]).error();
        assert!(error.contains("must be * or a list of scheme://host[:port]"), "{error}");
    }
    file("[http]\ncors_origins = []\n").load().unwrap_err();
}

#[test]
fn a_certificate_and_a_key_come_together() {
    let cert = ("DS_TLS__CERT_PATH", "cert.pem");
    let key = ("DS_TLS__KEY_PATH", "key.pem");
    assert!(env(&[cert, key]).load().unwrap().tls.is_some());
    let text = env(&[cert]).error();
    assert_eq!(
        text,
        "DS_TLS__CERT_PATH: tls.cert_path = \"cert.pem\": must be set together with tls.key_path"
    );
    let text = file("[transport.tls]\nkey_path = \"key.pem\"\n").error();
    assert_eq!(
        text,
        "default.toml: transport.tls.key_path = \"key.pem\": must be set together with tls.cert_path"
    );
    let text = env(&[("DS_TRANSPORT__MODE", "tls")]).error();
    assert_eq!(
        text,
        "DS_TRANSPORT__MODE: transport.mode = \"tls\": tls needs tls.cert_path and tls.key_path"
    );
    let text = env(&[("DS_TRANSPORT__MODE", "http"), cert, key]).error();
    assert!(
        text.starts_with("DS_TRANSPORT__MODE: transport.mode = \"http\": contradicts tls.cert_path"),
        "{text}"
    );
}

#[test]
fn versions_must_leave_something_to_speak() {
    let tls = [("DS_TLS__CERT_PATH", "c"), ("DS_TLS__KEY_PATH", "k")];
    let with = |versions, rest: &[(&str, &str)]| {
        env(&[rest, &[("DS_TRANSPORT__HTTP__VERSIONS", versions)]].concat()).load()
    };
    let transport = with("http1, h2c", &[]).unwrap().transport;
    assert_eq!((transport.http1, transport.http2, transport.h2c), (true, false, true));
    with("http2", &tls).unwrap();
    with("http2", &[]).unwrap_err();
    with("h2c", &tls).unwrap_err();
    with("", &[]).unwrap_err();
    with("http3", &[]).unwrap_err();
    file("[transport.http]\nversions = []\n").load().unwrap_err();
}

#[test]
fn a_body_that_could_never_be_taken_is_refused() {
    let text = env(&[("DS_LIMITS__MAX_BODY_BYTES", "2000"), ("DS_LIMITS__MAX_STAGED_BYTES", "1000")]).error();
    let rule = "must not exceed limits.max_staged_bytes (1000), or such a body could never be taken";
    assert_eq!(text, format!("DS_LIMITS__MAX_BODY_BYTES: limits.max_body_bytes = \"2000\": {rule}"));
    // The value that does not fit may be a default.
    let text = env(&[("DS_LIMITS__MAX_BUFFERED_BODY_BYTES", "1000")]).error();
    assert!(
        text.starts_with("built-in default: limits.max_body_bytes = 16777216: must not exceed"),
        "{text}"
    );
}

#[test]
fn a_page_that_exceeds_what_all_pages_share_is_refused() {
    let text =
        env(&[("DS_LIMITS__READ_PAGE_BYTES", "2000"), ("DS_LIMITS__MAX_READ_BUFFER_BYTES", "1999")]).error();
    let rule = "must not exceed limits.max_read_buffer_bytes (1999), which pages share";
    assert_eq!(text, format!("DS_LIMITS__READ_PAGE_BYTES: limits.read_page_bytes = \"2000\": {rule}"));
    env(&[("DS_LIMITS__READ_PAGE_BYTES", "2000"), ("DS_LIMITS__MAX_READ_BUFFER_BYTES", "2000")])
        .load()
        .unwrap();
    env(&[("DS_LIMITS__MAX_READ_BUFFER_BYTES", "1MiB")]).load().unwrap_err();
}

#[test]
fn log_directives_come_from_the_narrowest_source_and_are_checked() {
    let log = |env: &[(&str, &str)]| {
        let files = [("default.toml", "[log]\nrust_log = \"error\"\n")];
        Case::new(&files, env).load().unwrap().log.rust_log
    };
    assert_eq!(log(&[]), "error");
    assert_eq!(log(&[("RUST_LOG", "")]), "error");
    assert_eq!(log(&[("RUST_LOG", "warn")]), "warn");
    assert_eq!(log(&[("RUST_LOG", "warn"), ("DS_LOG__RUST_LOG", "debug")]), "debug");
    let text = env(&[("RUST_LOG", "a=b=c")]).error();
    assert!(text.starts_with("RUST_LOG: log.rust_log = \"a=b=c\": must be filter directives"), "{text}");
    assert_eq!(env(&[("DS_LOG__FORMAT", "json")]).load().unwrap().log.format, LogFormat::Json);
}

#[test]
fn a_configuration_made_by_a_program_obeys_the_same_rules() {
    let mut config = Config::default();
    assert_eq!(config.validated().unwrap(), config);
    config.http.stream_base_path = "/streams/".to_owned();
    config.limits.max_stream_bytes = None;
    config.tls = env(&[("DS_TLS__CERT_PATH", "c"), ("DS_TLS__KEY_PATH", "k")]).load().unwrap().tls;
    let checked = config.validated().unwrap();
    assert_eq!(checked.http.stream_base_path, "/streams");
    assert_eq!(checked.limits.max_stream_bytes, None);
    assert_eq!(checked.tls, config.tls);
    config.limits.max_header_bytes = 1;
    let text = config.validated().unwrap_err().to_string();
    assert_eq!(
        text,
        format!("set by the program: limits.max_header_bytes = 1: {}", key("limits.max_header_bytes").rule())
    );
}
