# What docs/aws.md walks through: a role with which Troop looks and can do nothing else, and a group that its team has opted in.
#
#     troop aws policy > troop-read.json    # kept beside this file
#     terraform init && terraform apply -var vpc_id=… -var 'subnet_ids=["…","…","…"]' -var image_id=…

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "region" {
  description = "Where the group is. A region that the site file does not name is never looked at."
  type        = string
  default     = "us-east-1"
}

variable "vpc_id" {
  description = "The network that group, balancer and control plane are in."
  type        = string
}

variable "subnet_ids" {
  description = "One subnet in each of three zones: a group that is not even over its zones is spared."
  type        = list(string)
}

variable "image_id" {
  description = "The service's AMI, with a tag `appversion` such as `checkout-1.0.0`."
  type        = string
}

variable "team" {
  description = "Must equal `team` in the policy file that names the app."
  type        = string
  default     = "shop"
}

provider "aws" {
  region = var.region
}

# Troop, leashed: it looks, plans and explains. No bug of its own can do more than this role may.

data "aws_iam_policy_document" "troop_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "troop_read" {
  name               = "troop-read"
  description        = "Troop's control plane, leashed"
  assume_role_policy = data.aws_iam_policy_document.troop_trust.json
}

resource "aws_iam_role_policy" "troop_read" {
  name   = "troop-read"
  role   = aws_iam_role.troop_read.id
  policy = file("${path.module}/troop-read.json")
}

resource "aws_iam_instance_profile" "troop" {
  name = "troop-read"
  role = aws_iam_role.troop_read.name
}

# The control plane's instance: agents dial in, and nobody else.

resource "aws_security_group" "troop" {
  name        = "troop"
  description = "Troop's control plane"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "agents" {
  security_group_id            = aws_security_group.troop.id
  description                  = "Agents dial in here (`agents.listen` of the site file)"
  referenced_security_group_id = aws_security_group.checkout.id
  ip_protocol                  = "tcp"
  from_port                    = 7443
  to_port                      = 7443
}

resource "aws_vpc_security_group_egress_rule" "troop" {
  security_group_id = aws_security_group.troop.id
  description       = "AWS, and where notices are posted"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# A service. Its group's name is app, stack and version; its team has opted it in by a tag.

resource "aws_security_group" "checkout" {
  name        = "checkout-web"
  description = "The service and its balancer"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "checkout" {
  security_group_id            = aws_security_group.checkout.id
  description                  = "From the balancer"
  referenced_security_group_id = aws_security_group.checkout.id
  ip_protocol                  = "tcp"
  from_port                    = 8080
  to_port                      = 8080
}

resource "aws_vpc_security_group_egress_rule" "checkout" {
  security_group_id = aws_security_group.checkout.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

# The join token of the agents on its instances (`token_ssm` of agent.toml), and the one thing that their role may do with it.

resource "aws_ssm_parameter" "join" {
  name        = "/troop/join"
  description = "What `troop agents --token` prints; put there with `aws ssm put-parameter --overwrite`, so that no state file holds it"
  type        = "SecureString"
  value       = "not yet"

  lifecycle {
    ignore_changes = [value]
  }
}

data "aws_iam_policy_document" "agent" {
  statement {
    actions   = ["ssm:GetParameter"]
    resources = [aws_ssm_parameter.join.arn]
  }
}

resource "aws_iam_role" "checkout" {
  name               = "checkout-web"
  description        = "The service's instances"
  assume_role_policy = data.aws_iam_policy_document.troop_trust.json
}

resource "aws_iam_role_policy" "agent" {
  name   = "troop-agent"
  role   = aws_iam_role.checkout.id
  policy = data.aws_iam_policy_document.agent.json
}

resource "aws_iam_instance_profile" "checkout" {
  name = "checkout-web"
  role = aws_iam_role.checkout.name
}

resource "aws_launch_template" "checkout" {
  name                   = "checkout-web"
  image_id               = var.image_id
  instance_type          = "t3.micro"
  vpc_security_group_ids = [aws_security_group.checkout.id]

  iam_instance_profile {
    arn = aws_iam_instance_profile.checkout.arn
  }

  # Version 2 of the metadata service alone. An agent in a container needs a hop limit of 2.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
}

resource "aws_lb" "checkout" {
  name               = "checkout-web"
  internal           = true
  load_balancer_type = "application"
  security_groups    = [aws_security_group.checkout.id]
  subnets            = var.subnet_ids
}

resource "aws_lb_target_group" "checkout" {
  name                 = "checkout-web-v000"
  vpc_id               = var.vpc_id
  port                 = 8080
  protocol             = "HTTP"
  deregistration_delay = 30

  health_check {
    path     = "/health"
    interval = 10
  }
}

resource "aws_lb_listener" "checkout" {
  load_balancer_arn = aws_lb.checkout.arn
  port              = 80
  protocol          = "HTTP"

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.checkout.arn
  }

  # A push moves the traffic to the next version's target group: applying this again must not move it back.
  lifecycle {
    ignore_changes = [default_action]
  }
}

resource "aws_autoscaling_group" "checkout" {
  name                      = "checkout-web-v000"
  min_size                  = 3
  max_size                  = 9
  desired_capacity          = 3
  vpc_zone_identifier       = var.subnet_ids
  target_group_arns         = [aws_lb_target_group.checkout.arn]
  health_check_type         = "ELB"
  health_check_grace_period = 60

  launch_template {
    id      = aws_launch_template.checkout.id
    version = aws_launch_template.checkout.latest_version
  }

  tag {
    key                 = "troop:team"
    value               = var.team
    propagate_at_launch = false
  }

  # Troop writes tags of its own, and while the group is the way back of a push holds its size and some processes.
  lifecycle {
    ignore_changes = [desired_capacity, min_size, suspended_processes, tag]
  }
}

output "site_file" {
  description = "What /etc/troop/troop.toml says of this account"
  value       = <<-TOML
    [[accounts]]
    name    = "prod"
    regions = ["${var.region}"]
  TOML
}
