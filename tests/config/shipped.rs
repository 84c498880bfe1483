//! What is printed, shipped in `config/`, and documented.

use durable_streams_server::config::{Config, ConfigLoadOptions, KEYS, LEGACY_KEYS, StorageMode};

use super::{Case, env, file, repository, shipped};

#[test]
fn the_printed_configuration_names_the_source_of_each_value() {
    let files = [("default.toml", "[limits]\nmax_streams = 7\n")];
    let printed = Case::new(&files, &[("DS_STORAGE__MODE", "acid")]).loaded().to_string();
    let line = |start: &str| printed.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    assert!(line("max_streams = 7 ").ends_with("/default.toml"));
    assert!(line("mode = \"acid\" ").ends_with("# DS_STORAGE__MODE"));
    assert!(line("max_stream_bytes = \"unlimited\" ").ends_with("# built-in default"));
    for key in KEYS {
        let (_, leaf) = key.name().rsplit_once('.').unwrap();
        line(&format!("{leaf} = "));
    }
}

#[test]
fn the_printed_configuration_loads_to_the_same_configuration() {
    let rich = [
        ("DS_SERVER__BIND_ADDRESS", "[::]:9"),
        ("DS_SERVER__PORT", "10"),
        ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.25"),
        ("DS_HTTP__PUBLIC_ORIGIN", "https://a"),
        ("DS_HTTP__CORS_ORIGINS", "https://a,https://b"),
        ("DS_HTTP__STREAM_BASE_PATH", "/"),
        ("DS_LIMITS__MAX_STREAM_BYTES", "unlimited"),
        ("DS_STORAGE__DATA_DIR", "C:\\data \"x\"\n"),
        ("DS_STORAGE__ACID_SHARD_COUNT", "3"),
        ("DS_TLS__CERT_PATH", "c"),
        ("DS_TLS__KEY_PATH", "k"),
        ("DS_TRANSPORT__HTTP__VERSIONS", "http1"),
    ];
    for variables in [&rich[..], &[]] {
        let first = env(variables).loaded();
        let text = first.to_string();
        let second = file(&text).load().unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(second, first.config);
    }
}

#[test]
fn the_shipped_default_file_changes_nothing() {
    assert_eq!(file(&shipped("config/default.toml")).load().unwrap(), Config::default());
}

/// `config/default.toml` with its commented values in force.
fn uncommented_default() -> String {
    let is_value = |line: &str| {
        line.split_once(" = ").is_some_and(|(leaf, _)| {
            leaf.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit())
        })
    };
    let text = shipped("config/default.toml");
    let lines =
        text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_value(rest)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_default_file_shows_every_key_at_its_default() {
    let text = uncommented_default();
    let loaded = file(&text).loaded();
    assert_eq!(loaded.config, Config::default());
    for key in KEYS {
        let (section, leaf) = key.name().rsplit_once('.').unwrap();
        let start = text.find(&format!("\n[{section}]\n")).unwrap_or_else(|| panic!("no section {section}"));
        let body = &text[start + 2..];
        let body = &body[..body.find("\n[").unwrap_or(body.len())];
        let line = format!("\n{leaf} = {}\n", key.default_value());
        assert!(format!("{body}\n").contains(&line), "{} is missing or has another value:{line}", key.name());
        let rule = key.rule().replacen("must be ", "", 1);
        assert!(
            body.to_lowercase().contains(&rule.to_lowercase()),
            "{} has another rule: {rule}",
            key.name()
        );
    }
}

#[test]
fn the_shipped_profiles_load() {
    let certificate = [("DS_TLS__CERT_PATH", "c"), ("DS_TLS__KEY_PATH", "k")];
    let with_shipped = |variables: &[(&str, &str)], profile: &str| {
        let variables = variables.iter().copied();
        let options =
            ConfigLoadOptions::default().with_config_dir(repository().join("config")).with_env(variables);
        Config::load(&options.with_profile(profile))
    };
    assert_eq!(with_shipped(&[], "default").unwrap(), Config::default());
    assert!(with_shipped(&[], "dev").unwrap().log.rust_log.contains("debug"));
    assert_eq!(with_shipped(&[], "prod").unwrap().storage.mode, StorageMode::Acid);
    assert!(with_shipped(&certificate, "prod-tls").unwrap().tls.is_some());
    let text = with_shipped(&[], "prod-tls").unwrap_err().to_string();
    assert!(text.ends_with("transport.mode = \"tls\": tls needs tls.cert_path and tls.key_path"), "{text}");
}

fn documented_keys() -> String {
    let mut table =
        String::from("| key | variable | default | what it does | allowed |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let default = key.default_value();
        let default = if default == "\"\"" { "not set".to_owned() } else { format!("`{default}`") };
        let rule = key.rule().replacen("must be ", "", 1);
        table +=
            &format!("| `{}` | `{}` | {default} | {} | {rule} |\n", key.name(), key.env_name(), key.about());
    }
    table
}

fn documented_aliases() -> String {
    let mut table = String::from("| 0.3 name | here |\n|---|---|\n");
    for key in KEYS {
        for alias in key.aliases() {
            table += &format!("| `{alias}` | `{}` |\n", key.name());
        }
    }
    for key in LEGACY_KEYS {
        let rule = key.rule().replace("; empty = not set", "");
        table += &format!("| `{}` | {rule}. {} |\n", key.name(), key.about());
    }
    table
}

#[test]
fn the_documentation_lists_every_key() {
    let page = shipped("docs/configuration.md");
    for table in [documented_keys(), documented_aliases()] {
        assert!(page.contains(&table), "docs/configuration.md must contain this table:\n\n{table}");
    }
}
