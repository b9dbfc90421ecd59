//! What a request to AWS was signed for, as whoever stands in for AWS tells requests apart.

use http::{HeaderMap, header};

/// Region and service in the scope of a signature (Signature Version 4, `Credential=KEY/DATE/REGION/SERVICE/aws4_request`);
/// `None` for a request that was not signed so.
pub fn signed_for(headers: &HeaderMap) -> Option<(&str, &str)> {
    let signature = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let credential = signature.split("Credential=").nth(1)?.split(',').next()?;
    let mut words = credential.split('/').skip(2);
    Some((words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_and_service_are_read_from_the_signature() {
        let mut headers = HeaderMap::new();
        assert_eq!(signed_for(&headers), None);
        let text =
            "AWS4-HMAC-SHA256 Credential=AKIA/20261124/eu-west-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
        headers.insert(header::AUTHORIZATION, text.parse().unwrap());
        assert_eq!(signed_for(&headers), Some(("eu-west-1", "ec2")));
    }
}
