#include "pods/secrets.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace thaw::pods {
namespace {

using Pair = std::pair<const char*, const char*>;

TEST(Secrets, WhatLooksLikeOne) {
  for (auto [name, value] :
       {Pair{"DB_PASSWORD", "x"}, Pair{"aws_secret_access_key", "x"}, Pair{"GITHUB_TOKEN", "x"},
        Pair{"STRIPE_KEY", "x"}, Pair{"ENCRYPTION_KEY", "x"}, Pair{"KEY", "x"},
        Pair{"MYSQL_PWD", "x"}, Pair{"SMTP_PASS", "x"}, Pair{"ACCESSTOKEN", "x"},
        Pair{"TOKEN_FOR_CI", "x"}, Pair{"GOOGLE_CREDENTIALS", "{}"},
        Pair{"DATABASE_URL", "postgres://app:hunter2@db:5432/app"},
        Pair{"BROKERS", "amqp://one:8080,amqp://me:pw@two"},
        Pair{"TLS", "-----BEGIN EC PRIVATE KEY-----\nMHc"}})
    EXPECT_TRUE(looks_secret(name, value)) << name;
}

TEST(Secrets, WhatDoesNot) {
  for (auto [name, value] :
       {Pair{"PATH", "/usr/bin"}, Pair{"PWD", "/srv"}, Pair{"DB_PASSWORD_FILE", "/run/x"},
        Pair{"TOKENIZERS_PARALLELISM", "false"}, Pair{"MAX_TOKENS", "100"},
        Pair{"MONKEY", "banana"}, Pair{"URL", "http://host:8080/a@b:c"},
        Pair{"PROXY", "http://user@host:3128"}, Pair{"EMPTY", "http://user:@host"},
        Pair{"CERTIFICATE", "-----BEGIN CERTIFICATE-----"}})
    EXPECT_FALSE(looks_secret(name, value)) << name;
}

}  // namespace
}  // namespace thaw::pods
