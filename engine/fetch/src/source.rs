//! What a user writes for a checkpoint that lies elsewhere.

use crate::FetchError;
use url::Url;

/// Names that stand for the folder they are in.
const OF_A_FOLDER: [&str; 5] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
];
const SCHEMES: [&str; 4] = ["http://", "https://", "s3://", "hf://"];

/// An address, understood.
///
/// ```text
/// https://host/path/model.gguf                a GGUF file
/// https://host/path/                          a folder; so does any of its config.json, model.safetensors,
///                                             model.safetensors.index.json, adapter_config.json stand for it
/// s3://bucket/key                             as the two above
/// hf://org/repo[@revision][/model.gguf]       a repository of a model hub, or one file of it
/// ...#sha256=DIGEST                           of a file: it must have this digest
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub(crate) site: Site,
    /// Without secrets; of a folder with a slash at its end.
    pub(crate) shown: String,
    /// One file's name in its folder; none for a folder.
    pub(crate) file: Option<String>,
    /// Of the file, 64 lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// The folder's URL, with no slash at its end.
    Http(Url),
    /// The folder's key, with no slash at its end.
    S3 {
        bucket: String,
        prefix: String,
    },
    Hub {
        repository: String,
        revision: String,
    },
}

impl Source {
    /// Whether a text is an address rather than a path.
    pub fn is_remote(text: &str) -> bool {
        SCHEMES.iter().any(|scheme| text.starts_with(scheme))
    }

    /// # Errors
    /// Says what is wrong with the text, or what it should be.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let shown = text.split(['?', '#']).next().unwrap_or_default();
        let wrong = |message: &str| FetchError::Source { text: shown.to_owned(), message: message.to_owned() };
        let (address, sha256) = match text.split_once('#') {
            None => (text, None),
            Some((address, fragment)) => {
                let digest = fragment.strip_prefix("sha256=").map(str::to_ascii_lowercase);
                let is_digest = |digest: &String| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
                let digest = digest.filter(is_digest);
                (
                    address,
                    Some(digest.ok_or_else(|| wrong("after # only sha256= and 64 hexadecimal digits may stand"))?),
                )
            }
        };
        let source = match address.split_once("://") {
            Some(("http" | "https", _)) => http(address).map_err(|message| wrong(&message))?,
            Some(("s3", rest)) => s3(rest).map_err(wrong)?,
            Some(("hf", rest)) => hub(rest).map_err(wrong)?,
            _ => return Err(wrong("it begins with none of http://, https://, s3:// and hf://")),
        };
        if sha256.is_some() && source.file.is_none() {
            return Err(wrong("a digest is of one file, and this is a folder"));
        }
        Ok(Self { sha256, ..source })
    }

    /// What is shown of a file in the folder.
    pub(crate) fn shown_file(&self, name: &str) -> String {
        format!("{}{name}", &self.shown[..self.shown.rfind('/').map_or(0, |slash| slash + 1)])
    }
}

fn http(address: &str) -> Result<Source, String> {
    let mut url = Url::parse(address).map_err(|error| error.to_string())?;
    let path = url.path().to_owned();
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let name = object_store::path::Path::from_url_path(name).map_err(|error| error.to_string())?;
    let file = file(name.as_ref())?;
    url.set_path(folder);
    let mut shown = url.clone();
    // Neither fails for a URL that has a host.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    let shown = format!("{}/{}", shown.as_str().trim_end_matches('/'), file.as_deref().unwrap_or_default());
    Ok(Source { site: Site::Http(url), shown, file, sha256: None })
}

fn s3(rest: &str) -> Result<Source, &'static str> {
    const FORM: &str = "it should be s3://bucket/key of a .gguf file, or s3://bucket/folder/";
    let (bucket, key) = rest.split_once('/').filter(|(bucket, _)| !bucket.is_empty()).ok_or(FORM)?;
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let file = file(name).map_err(|_| FORM)?;
    let shown = format!("s3://{bucket}/{prefix}{}", if prefix.is_empty() { "" } else { "/" });
    let shown = shown + file.as_deref().unwrap_or_default();
    Ok(Source { site: Site::S3 { bucket: bucket.into(), prefix: prefix.into() }, shown, file, sha256: None })
}

fn hub(rest: &str) -> Result<Source, &'static str> {
    const FORM: &str = "it should be hf://organisation/repository, perhaps with @revision and /file.gguf after it";
    let plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(known)
    };
    let mut parts = rest.trim_end_matches('/').splitn(3, '/');
    let (organisation, repository, file) = (parts.next().ok_or(FORM)?, parts.next().ok_or(FORM)?, parts.next());
    let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    if ![organisation, repository, revision].into_iter().all(plain) {
        return Err(FORM);
    }
    if file.is_some_and(|file| !file.split('/').all(plain) || !file.ends_with(".gguf")) {
        return Err(FORM);
    }
    let repository = format!("{organisation}/{repository}");
    let shown = format!("hf://{repository}@{revision}/{}", file.unwrap_or_default());
    Ok(Source {
        site: Site::Hub { repository, revision: revision.into() },
        shown,
        file: file.map(str::to_owned),
        sha256: None,
    })
}

/// What the last part of an address stands for: one file, or the folder.
fn file(name: &str) -> Result<Option<String>, String> {
    if name.is_empty() || OF_A_FOLDER.contains(&name) {
        return Ok(None);
    }
    if name.starts_with('.') || name.len() > 200 || name.contains(['/', '\\', '\0']) || name.ends_with(".safetensors") {
        return Err(format!(
            "{name:?} is neither a GGUF file nor a folder: give a .gguf file, or the folder's address with / at its end"
        ));
    }
    Ok(Some(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_files_or_folders() {
        let of = |text: &str| Source::parse(text).map(|source| (source.shown, source.file));
        let is = |text: &str, shown: &str, file: Option<&str>| {
            assert_eq!(of(text).expect(text), (shown.to_owned(), file.map(str::to_owned)), "{text}");
        };
        is("http://a:b@h/m/x%20y.gguf?key=1", "http://h/m/x y.gguf", Some("x y.gguf"));
        is("https://h/m/config.json?key=1", "https://h/m/", None);
        is("https://h/", "https://h/", None);
        is("https://h", "https://h/", None);
        is("s3://b/k.gguf", "s3://b/k.gguf", Some("k.gguf"));
        is("s3://b/p/q/model.safetensors.index.json", "s3://b/p/q/", None);
        is("hf://o/r", "hf://o/r@main/", None);
        is("hf://o/r@v1/q/m.gguf", "hf://o/r@v1/q/m.gguf", Some("q/m.gguf"));
        let digest = "0A".repeat(32);
        let source = Source::parse(&format!("http://h/m.gguf#sha256={digest}")).expect("an address");
        assert_eq!(source.sha256, Some(digest.to_lowercase()));
        assert_eq!(source.shown_file("n"), "http://h/n");
        for bad in [
            "ftp://h/m.gguf",
            "m.gguf",
            "http://",
            "https://h/m/foo.safetensors",
            "https://h/m.gguf#sha256=12",
            "https://h/m/#sha256=0000000000000000000000000000000000000000000000000000000000000000",
            "s3://b",
            "s3:///k",
            "hf://o",
            "hf://o/r/../x.gguf",
            "hf://o/../r",
            "hf://o/r/x.bin",
            "hf://o/r@a/b",
        ] {
            assert!(matches!(of(bad), Err(FetchError::Source { .. })), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let error = Source::parse("https://h/m/foo.safetensors?secret=1").expect_err("no checkpoint").to_string();
        assert!(!error.contains("secret") && error.contains("foo.safetensors"), "{error}");
    }
}
