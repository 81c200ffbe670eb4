#include "network/nft_table.h"

#include <dlfcn.h>
#include <nftables/libnftables.h>

#include "network/layout.h"
#include "network/links.h"
#include "network/nft_netlink.h"
#include "util/error.h"
#include "util/file.h"

namespace thaw::network {
namespace {

constexpr const char* kMap = "unique4";
constexpr const char* kMap6 = "unique6";
constexpr const char* kQuoted = "quoted4";
constexpr const char* kQuoted6 = "quoted6";

// Order of the hooks for a packet from a replica: source to unique (-400), conntrack (-200),
// filters (0), masquerade (100). To a
// link's address: destination to the gateway's listener (-100). Its answer: conntrack undoes the
// masquerade (-100), filters (0), destination to fixed (400). So conntrack and every other table of
// the host see unique addresses only.
std::string rules(int instance) {
  // One chain for each hook, entered by every packet of the host: a single comparison, then a jump.
  return fmt::format(
      R"(
table inet {table} {{
  map {map4} {{ type ifname : ipv4_addr; size 2048; }}
  map {map6} {{ type ifname : ipv6_addr; size 2048; }}

  chain from_replica {{
    iifgroup {closed} drop
    ip saddr {fixed4} ip saddr set iifname map @{map4} return
    ip6 saddr {fixed6} ip6 saddr set iifname map @{map6} return
    drop
  }}
  chain {quoted4} {{
  }}
  chain {quoted6} {{
  }}
  chain to_replica {{
    icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} jump {quoted4}
    icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} jump {quoted6}
    ip daddr {block4} ip daddr set {fixed4}
    ip6 daddr {block6} ip6 daddr set {fixed6}
  }}
  chain gate {{
    oifgroup {closed} drop
    ct state established accept
    ct state related meta l4proto {{ icmp, ipv6-icmp }} accept
    drop
  }}
  chain to_host {{
    ip daddr {listener} tcp dport {link_port} ct status dnat accept
    ct state established accept
    ct state related meta l4proto {{ icmp, ipv6-icmp }} accept
    icmp type echo-request accept
    icmpv6 type echo-request accept
    drop
  }}
  chain clamp {{
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }}

  chain on_prerouting {{
    type filter hook prerouting priority -400; policy accept;
    iifname "{pattern}" jump from_replica
  }}
  chain on_prerouting_nat {{
    type nat hook prerouting priority -100; policy accept;
    iifname "{pattern}" ip daddr 10.77.0.0/16 ip daddr != 10.77.0.0/24 meta l4proto tcp dnat ip to {listener}:{link_port}
  }}
  chain on_input {{
    type filter hook input priority 0; policy accept;
    iifname "{pattern}" jump to_host
  }}
  chain on_forward {{
    type filter hook forward priority 0; policy accept;
    iifname "{pattern}" oifname "thaw*" drop
    iifname "{pattern}" jump clamp
    oifname "{pattern}" jump clamp
    oifname "{pattern}" jump gate
  }}
  chain on_output {{
    type filter hook output priority 0; policy accept;
    oifname "{pattern}" jump gate
  }}
  chain on_postrouting_nat {{
    type nat hook postrouting priority 100; policy accept;
    oifname != "thaw*" ip saddr {block4} masquerade
    oifname != "thaw*" ip6 saddr {block6} masquerade
  }}
  chain on_postrouting {{
    type filter hook postrouting priority 400; policy accept;
    oifname "{pattern}" jump to_replica
  }}
}}
)",
      fmt::arg("table", table_name(instance)), fmt::arg("closed", kClosedGroup),
      fmt::arg("map4", kMap), fmt::arg("map6", kMap6), fmt::arg("quoted4", kQuoted),
      fmt::arg("quoted6", kQuoted6), fmt::arg("fixed4", kReplicaAddress),
      fmt::arg("fixed6", kReplicaAddress6), fmt::arg("block4", address_block(instance)),
      fmt::arg("block6", address_block6(instance)), fmt::arg("listener", link_listener(instance)),
      fmt::arg("link_port", kLinkPort), fmt::arg("pattern", interface_pattern(instance)));
}

// libnftables and the five libraries it brings are loaded when the daemon needs them and not with
// the program, or every command and shim would wait for them.
class Libnftables {
 public:
  Libnftables() : handle_(::dlopen("libnftables.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) fail();
  }
  template <typename Function>
  Function* get(const char* name) const {
    void* symbol = ::dlsym(handle_, name);
    if (!symbol) fail();
    return reinterpret_cast<Function*>(symbol);
  }

 private:
  [[noreturn]] static void fail() {
    throw Error(Code::kUnsupported, "load", "libnftables.so.1", ::dlerror(),
                "install the package libnftables1");
  }
  void* handle_;
};

// Empty when it worked, otherwise nft's own message.
std::string run_nft(const std::string& commands) {
  Libnftables nft;
  std::unique_ptr<nft_ctx, void (*)(nft_ctx*)> context(
      nft.get<decltype(nft_ctx_new)>("nft_ctx_new")(NFT_CTX_DEFAULT),
      nft.get<decltype(nft_ctx_free)>("nft_ctx_free"));
  if (!context) throw Error(Code::kExhausted, "start libnftables", "", "out of memory");
  nft.get<decltype(nft_ctx_buffer_output)>("nft_ctx_buffer_output")(context.get());
  nft.get<decltype(nft_ctx_buffer_error)>("nft_ctx_buffer_error")(context.get());
  auto* run = nft.get<decltype(nft_run_cmd_from_buffer)>("nft_run_cmd_from_buffer");
  if (run(context.get(), commands.c_str()) == 0) return {};
  auto* reason = nft.get<decltype(nft_ctx_get_error_buffer)>("nft_ctx_get_error_buffer");
  const char* text = reason(context.get());
  std::string message = trim(text ? text : "");
  return message.empty() ? "nft gave no reason" : message;
}

std::vector<MapElement> map_elements(int instance, std::string (*address)(int, int)) {
  std::vector<MapElement> elements;
  for (int index = 1; index <= kAddresses; ++index) {
    elements.push_back(
        {Network::interface_name(instance, index), Address::parse(address(instance, index))});
  }
  return elements;
}

}  // namespace

void load_table(int instance) {
  const std::string name = table_name(instance);
  // First keep the maps that an earlier daemon left and replace the rules only: living replicas
  // notice nothing. A table of another shape (an older version's) is thrown away as a whole.
  std::string why =
      run_nft(fmt::format("add table inet {0}\nflush table inet {0}\n", name) + rules(instance));
  if (!why.empty()) {
    why =
        run_nft(fmt::format("add table inet {0}\ndelete table inet {0}\n", name) + rules(instance));
  }
  if (!why.empty()) {
    throw Error(Code::kUnsupported, "load nft table", name, why,
                "Thaw needs a kernel with nftables, its inet family, conntrack and masquerade, and "
                "CAP_NET_ADMIN");
  }
  fill_map(name, kMap, map_elements(instance, &Network::unique_address));
  fill_map(name, kMap6, map_elements(instance, &Network::unique_address6));
  // An ICMP error quotes the packet it is about, and the replica finds its socket by the quoted
  // source address: without this no path MTU, no "connection refused" for UDP, no "host
  // unreachable". IPv4: source at 12 of the quoted header, and its checksum at 10 is adjusted, so
  // that the sum over the whole message stays right. IPv6: source at 8; there is no header
  // checksum, so the message's own.
  add_rewrite(name, kQuoted, {20, Address::parse(kReplicaAddress), 18});
  add_rewrite(name, kQuoted6, {16, Address::parse(kReplicaAddress6), 2});
}

void delete_table(int instance) {
  const std::string name = table_name(instance);
  std::string why = run_nft(fmt::format("add table inet {0}\ndelete table inet {0}\n", name));
  if (!why.empty()) throw Error(Code::kSystem, "delete nft table", name, why);
}

}  // namespace thaw::network
